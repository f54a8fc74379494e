r"""Classify by label words at the mask of a BERT-like model, its linear layers quantized, and move their scales.

    pip install 'zoquant[quanto]'
    python examples/masked.py --model FacebookAI/roberta-large --data train.jsonl --out tuned \
        --template "{sentence} It was {mask}." --labels "0=terrible,1=great"

The loss is the cross-entropy over the scores of the label words where the mask stands, as in MeZO (arXiv 2305.17333,
appendix E.2). A label word has to be one token.

Written for transformers 5: before it, `dtype` of `from_pretrained` is called `torch_dtype`.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, AutoTokenizer

import zoquant

Rows = list[dict[str, str]]


def open_model(path: str) -> Any:
    """Return a masked language model whose linear layers optimum-quanto holds in 8 bits; the output layer stays."""
    from optimum.quanto import freeze, qint8, quantize

    model = AutoModelForMaskedLM.from_pretrained(path, dtype=torch.float32).eval().requires_grad_(False)
    head = model.get_output_embeddings()
    quantize(model, weights=qint8, exclude=[name for name, module in model.named_modules() if module is head])
    freeze(model)
    return model.eval()


def word_tokens(tokenizer: Any, labels: Mapping[str, str]) -> Tensor:
    """Return the token of every label word; words are tried with a space before them, as they stand in the text.

    Raises:
        ValueError: a word is not one token.
    """
    tokens = []
    for value, word in labels.items():
        found = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (f" {word}", word)]
        one = [ids[0] for ids in found if len(ids) == 1]
        if not one or one[0] == tokenizer.unk_token_id:
            raise ValueError(
                f"label {value!r}: {word!r} is {len(found[0])} tokens or unknown, expected one. Take another."
            )
        tokens.append(one[0])
    return torch.tensor(tokens)


def label_scores(model: Any, tokenizer: Any, texts: list[str], words: Tensor) -> Tensor:
    """Return the scores of the label words at the mask of each text, `[texts, labels]`.

    Raises:
        ValueError: a text has no mask, or was cut before it.
    """
    batch = tokenizer(texts, return_tensors="pt", padding=True, truncation=True).to(model.device)
    masks = batch["input_ids"] == tokenizer.mask_token_id
    if not bool((masks.sum(1) == 1).all()):
        raise ValueError("a text has not exactly one mask: put {mask} once into the template, and shorten long texts.")
    logits: Tensor = model(**batch).logits
    return logits[masks][:, words.to(logits.device)].float()


def objective(model: Any, tokenizer: Any, rows: Rows, template: str, labels: Mapping[str, str]) -> Callable[[], Tensor]:
    """Return the loss of some rows as a closure."""
    texts = [template.format(**row, mask=tokenizer.mask_token) for row in rows]
    words, target = word_tokens(tokenizer, labels), torch.tensor([[*labels].index(str(row["label"])) for row in rows])
    return lambda: nn.functional.cross_entropy(label_scores(model, tokenizer, texts, words), target.to(model.device))


@torch.no_grad()
def accuracy(model: Any, tokenizer: Any, rows: Rows, template: str, labels: Mapping[str, str]) -> float:
    """Return the share of rows whose label word scores highest."""
    texts = [template.format(**row, mask=tokenizer.mask_token) for row in rows]
    best = label_scores(model, tokenizer, texts, word_tokens(tokenizer, labels)).argmax(-1).tolist()
    return sum([*labels][index] == str(row["label"]) for index, row in zip(best, rows, strict=True)) / len(rows)


def train(
    model: Any, loss_of: Callable[[Rows], Callable[[], Tensor]], rows: Rows, *, steps: int, batch: int, seed: int = 0
) -> zoquant.Views:
    """Move the scales; lr, eps and clip are measured first."""
    views = zoquant.attach(model)
    optimizer = zoquant.ZOSGD(views, seed=seed)
    generator = torch.Generator().manual_seed(seed)

    def drawn() -> Callable[[], Tensor]:
        return loss_of([rows[i] for i in torch.randint(len(rows), (batch,), generator=generator).tolist()])

    decay = [1 - step / steps for step in range(steps)]
    optimizer.calibrate([drawn(), drawn()], schedule=decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: decay[min(step, steps - 1)])
    for _ in range(steps):
        optimizer.step(drawn())
        schedule.step()
    return views


def main(argv: list[str] | None = None) -> tuple[float, float]:
    """Load, train, save the delta; return the loss over all rows before and after."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", required=True, help="folder or name of a masked language model")
    parser.add_argument("--data", type=Path, required=True, help="JSONL with the template's fields and 'label'")
    parser.add_argument("--template", default="{sentence} It was {mask}.")
    parser.add_argument("--labels", default="0=terrible,1=great")
    parser.add_argument("--out", type=Path, required=True, help="a new file of the delta")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=16)
    args = parser.parse_args(argv)
    labels = dict(part.split("=", 1) for part in args.labels.split(","))
    rows = [json.loads(line) for line in args.data.read_text(encoding="utf-8").splitlines()]
    tokenizer, model = AutoTokenizer.from_pretrained(args.model), open_model(args.model)

    def loss_of(some: Rows) -> Callable[[], Tensor]:
        return objective(model, tokenizer, some, args.template, labels)

    with torch.no_grad():
        before = float(loss_of(rows)())
        views = train(model, loss_of, rows, steps=args.steps, batch=args.batch)
        after = float(loss_of(rows)())
    zoquant.save_delta(args.out, views)
    print(f"loss {before:.4f} -> {after:.4f}, accuracy {accuracy(model, tokenizer, rows, args.template, labels):.3f}")
    return before, after


if __name__ == "__main__":
    main()
