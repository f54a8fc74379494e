"""Fine-tune a quantized checkpoint with Lightning; needs `pip install lightning`.

python examples/lightning_train.py model.gguf --steps 100
"""

import argparse
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import zoquant
from zoquant.demo import TEMPLATE, checkpoint, reviews
from zoquant.integrations.lightning import ZOModule
from zoquant.rows import read_rows
from zoquant.settings import Settings


class Reviews(ZOModule):
    """Tells good reviews from bad ones by the word that follows."""

    def __init__(self, model: nn.Module, tokenizer: Any, settings: Settings) -> None:
        super().__init__(model, settings)
        self.words = [tokenizer(TEMPLATE.continuation(v), add_special_tokens=False)["input_ids"][0] for v in "01"]

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the cross-entropy between the two words."""
        return nn.functional.cross_entropy(self._scores(batch), batch["labels"])

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log the accuracy."""
        hits = (self._scores(batch).argmax(-1) == batch["labels"]).float()
        self.log("accuracy", hits.mean(), batch_size=len(hits), prog_bar=True)

    def _scores(self, batch: dict[str, Tensor]) -> Tensor:
        logits = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        last = batch["attention_mask"].sum(-1) - 1
        return logits[torch.arange(len(last)), last][:, self.words].float()


def main() -> None:
    """Train and validate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="checkpoint; the demo's if left out")
    parser.add_argument("--train", type=Path, default=reviews("train"), help="JSONL with sentence and label 0 or 1")
    parser.add_argument("--test", type=Path, default=reviews("test"))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("runs/lightning"))
    given = parser.parse_args()

    model, tokenizer = zoquant.load(given.model or checkpoint())
    tokenizer.padding_side = "right"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)

    def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        texts = tokenizer([TEMPLATE.prompt(row) for row in rows], padding=True, return_tensors="pt")
        return {**texts, "labels": torch.tensor([int(row["label"]) for row in rows])}

    train = DataLoader(read_rows(given.train), given.batch, shuffle=True, collate_fn=collate)
    test = DataLoader(read_rows(given.test), 2 * given.batch, collate_fn=collate)
    module = Reviews(model, tokenizer, Settings())
    trainer = pl.Trainer(
        max_steps=given.steps, max_epochs=-1, accelerator="auto", devices=1, default_root_dir=given.out, logger=False
    )
    trainer.validate(module, test)
    trainer.fit(module, train)
    trainer.validate(module, test)
    zoquant.save_delta(given.out / "delta.safetensors", module.views)


if __name__ == "__main__":
    main()
