"""Tune a sequence-to-sequence model (T5, BART) in NF4 of bitsandbytes: the scales of encoder and decoder move.

    pip install 'zoquant[bitsandbytes]' sentencepiece
    python examples/seq2seq.py --model google/flan-t5-base --data train.jsonl --out tuned

`train.jsonl` has lines such as {"source": "translate English to German: thanks", "target": "danke"}. `tuned` is the
quantized checkpoint with the new scales, in its own format; `tuned-base` is what it started from.

Written for transformers 5: before it, `dtype` of `from_pretrained` is called `torch_dtype`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, BitsAndBytesConfig

import zoquant


def open_model(path: str) -> Any:
    """Return the model with its linear layers in NF4; the output layer stays as it is."""
    config: Any = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )  # fmt: skip
    place = {"": "cuda" if torch.cuda.is_available() else "cpu"}
    model = AutoModelForSeq2SeqLM.from_pretrained(
        path, quantization_config=config, dtype=torch.float32, device_map=place
    )
    return model.eval().requires_grad_(False)


def encode(tokenizer: Any, rows: list[dict[str, str]]) -> dict[str, Tensor]:
    """Return a batch; padding of the targets is not scored."""
    sources = tokenizer([row["source"] for row in rows], return_tensors="pt", padding=True, truncation=True)
    targets = tokenizer([row["target"] for row in rows], return_tensors="pt", padding=True, truncation=True)
    labels = targets["input_ids"].masked_fill(targets["attention_mask"] == 0, -100)
    return {"input_ids": sources["input_ids"], "attention_mask": sources["attention_mask"], "labels": labels}


def train(model: Any, views: zoquant.Views, batches: list[dict[str, Tensor]], *, steps: int) -> list[float]:
    """Move the scales and return the losses; lr, eps and clip are measured first."""
    optimizer = zoquant.ZOSGD(views)
    batches = [{name: value.to(model.device) for name, value in batch.items()} for batch in batches]

    def loss(batch: dict[str, Tensor]) -> Tensor:
        found: Tensor = model(**batch).loss
        return found

    decay = [1 - step / steps for step in range(steps)]
    optimizer.calibrate([lambda: loss(batches[0]), lambda: loss(batches[-1])], schedule=decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: decay[min(step, steps - 1)])
    losses = []
    for step in range(steps):
        batch = batches[step % len(batches)]
        losses.append(optimizer.step(lambda batch=batch: loss(batch)).loss)
        schedule.step()
    return losses


def main(argv: list[str] | None = None) -> list[float]:
    """Load, train, export; return the loss of every step."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", required=True, help="folder or name of a sequence-to-sequence model")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=16)
    args = parser.parse_args(argv)
    rows = [json.loads(line) for line in args.data.read_text(encoding="utf-8").splitlines()]
    tokenizer, model = AutoTokenizer.from_pretrained(args.model), open_model(args.model)
    base = args.out.with_name(f"{args.out.name}-base")
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    views = zoquant.attach(model)
    batches = [encode(tokenizer, rows[start : start + args.batch]) for start in range(0, len(rows), args.batch)]
    losses = train(model, views, batches, steps=args.steps)
    delta = args.out.with_name(f"{args.out.name}-delta.safetensors")
    zoquant.save_delta(delta, views)
    zoquant.export(base, delta=delta, out=args.out)
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}; the tuned checkpoint is {args.out}")
    return losses


if __name__ == "__main__":
    main()
