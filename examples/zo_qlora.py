r"""Tune an adapter on a quantized model, alone or together with its scales, by forward passes alone (ZO-QLoRA).

    pip install 'zoquant[peft,bitsandbytes]'
    python examples/zo_qlora.py --model HuggingFaceTB/SmolLM2-135M --base bitsandbytes --adapter lora --scales \
        --data train.jsonl --out tuned

`train.jsonl` has lines such as {"prompt": "Is the sky green? Answer:", "answer": " no"}. LoRA, prefix and prompt tuning
come from peft. With `--scales` one step moves the adapter in absolute space and the scales in relative space, from the
same two forwards. `--norms` moves the plain parameters, norms and biases, as well.

Source: QZO (arXiv 2505.13430), table 5.

Written for transformers 5: before it, `dtype` of `from_pretrained` is called `torch_dtype`.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

import zoquant

Batch = dict[str, Tensor]

ADAPTERS: dict[str, Callable[[], Any]] = {
    "lora": lambda: LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]),
    "prefix": lambda: PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    "prompt": lambda: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=10),
}
"""LoRA and the prefix as MeZO has them (arXiv 2305.17333, table 5)."""


def open_base(model: str, base: str) -> Any:
    """Return a causal model of transformers, its linear layers quantized to 4 bits by the library `base`."""
    if base == "hqq":
        return quantized_by_hqq(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32))
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    found = AutoModelForCausalLM.from_pretrained(
        model, quantization_config=nf4, dtype=torch.float32, device_map={"": default_device()}
    )
    return found.eval().requires_grad_(False)


def quantized_by_hqq(model: Any) -> Any:
    """Put hqq's layers in the place of all linear layers but the head: transformers 5 has no loader for them yet."""
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    head, config = model.get_output_embeddings(), BaseQuantizeConfig(nbits=4, group_size=64, axis=1)
    for path, module in list(model.named_modules()):
        if type(module) is nn.Linear and module is not head:
            parent, _, name = path.rpartition(".")
            layer = HQQLinear(module, config, compute_dtype=torch.float32, device=default_device())
            setattr(model.get_submodule(parent), name, layer)
    return model.to(default_device()).eval().requires_grad_(False)


def default_device() -> str:
    """Return the GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def adapted(model: Any, adapter: str, *, scales: bool, norms: bool) -> tuple[Any, dict[str, zoquant.Views]]:
    """Return the model with an adapter, and the views that train, by what they are.

    The views of the base are made before the adapter is put around its layers: their keys are then those of the base's
    own checkpoint, and their delta exports to it.
    """
    views: dict[str, zoquant.Views] = {}
    if scales:
        views["scales"] = zoquant.attach(model)
    if norms:
        views["norms"] = zoquant.attach(model, roles=("dense",), include=("*norm*", "*.bias"))
    tuned = get_peft_model(model, ADAPTERS[adapter]()).eval().requires_grad_(False)
    views["adapter"] = zoquant.attach(tuned, roles=("adapter",))
    return tuned, views


def optimizer_of(views: dict[str, zoquant.Views], seed: int) -> zoquant.ZOSGD:
    """Return the optimizer, a group for each: scales move relative to their size, all else by absolute amounts."""
    absolute = {"space": "absolute", "noise": "gaussian", "eps": 1e-2}
    groups = [{"views": each, **({} if name == "scales" else absolute)} for name, each in views.items()]
    return zoquant.ZOSGD(groups, seed=seed)


def train(optimizer: zoquant.ZOSGD, loss: Callable[[Batch], Tensor], batches: list[Batch], steps: int) -> list[float]:
    """Measure lr, eps and clip of every group, then move all of them in every step; return the losses."""
    decay = [1 - step / steps for step in range(steps)]
    for group in range(len(optimizer.all_views)):
        optimizer.calibrate([lambda: loss(batches[0]), lambda: loss(batches[-1])], schedule=decay, group=group)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: decay[min(step, steps - 1)])
    losses = []
    for step in range(steps):
        batch = batches[step % len(batches)]
        losses.append(optimizer.step(lambda batch=batch: loss(batch)).loss)
        schedule.step()
    return losses


def read_batches(path: Path, tokenizer: Any, size: int, seed: int) -> list[Batch]:
    """Return batches whose labels are the tokens of the answers."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    examples = [encode(rows[index], tokenizer) for index in order]
    return [collate(examples[start : start + size]) for start in range(0, len(examples), size)]


def encode(row: dict[str, str], tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return token ids and labels of one row; -100 stands where nothing is scored."""
    prompt = tokenizer(row["prompt"])["input_ids"]
    answer = tokenizer(row["answer"], add_special_tokens=False)["input_ids"]
    return prompt + answer, [-100] * len(prompt) + answer


def collate(examples: list[tuple[list[int], list[int]]]) -> Batch:
    """Return one batch, padded on the right."""
    width = max(len(ids) for ids, _ in examples)
    padded = {"input_ids": 0, "labels": -100, "attention_mask": 0}
    columns = {name: torch.full((len(examples), width), value) for name, value in padded.items()}
    for row, (ids, labels) in enumerate(examples):
        columns["input_ids"][row, : len(ids)] = torch.tensor(ids)
        columns["labels"][row, : len(ids)] = torch.tensor(labels)
        columns["attention_mask"][row, : len(ids)] = 1
    return {name: column.to(default_device()) for name, column in columns.items()}


def save(tuned: Any, views: dict[str, zoquant.Views], out: Path) -> None:
    """Save the adapter as peft does, and a delta of everything else; `zoquant.export` puts it into the base's files."""
    out.mkdir(parents=True)
    tuned.save_pretrained(out / "adapter")
    for name, each in views.items():
        if name != "adapter":
            zoquant.save_delta(out / f"{name}.safetensors", each)


def main(argv: list[str] | None = None) -> list[float]:
    """Load, adapt, train, save; return the loss of every step."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", required=True, help="folder or name of a causal model, not quantized yet")
    parser.add_argument("--base", choices=("bitsandbytes", "hqq"), default="bitsandbytes")
    parser.add_argument("--adapter", choices=tuple(ADAPTERS), default="lora")
    parser.add_argument("--scales", action="store_true", help="move the scales of the base as well")
    parser.add_argument("--norms", action="store_true", help="move norms and biases as well")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    torch.manual_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    tuned, views = adapted(open_base(args.model, args.base), args.adapter, scales=args.scales, norms=args.norms)
    batches = read_batches(args.data, tokenizer, args.batch, args.seed)
    losses = train(optimizer_of(views, args.seed), lambda batch: tuned(**batch).loss, batches, args.steps)
    save(tuned, views, args.out)
    print(f"loss {losses[0]:.4f} at the first step, {losses[-1]:.4f} at the last")
    return losses


if __name__ == "__main__":
    main()
