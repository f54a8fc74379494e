"""Fine-tune a quantized checkpoint with Lightning.

pip install 'zoquant[lightning]'
python examples/lightning_train.py model.gguf --steps 100
"""

import argparse
from pathlib import Path

import lightning.pytorch as pl
from torch import Tensor, nn
from torch.utils.data import DataLoader

import zoquant
from zoquant.cli.demo import TEMPLATE, checkpoint, reviews
from zoquant.integrations.lightning import Settings, ZOModule
from zoquant.tasks import Classification
from zoquant.tasks.rows import read_rows


class Reviews(ZOModule):
    """Tells good reviews from bad ones by the word that follows. A batch is the numbers of its examples."""

    def __init__(self, model: nn.Module, train: Classification, test: Classification) -> None:
        super().__init__(model, Settings())
        self.train_task, self.test_task = train, test

    def loss(self, batch: Tensor) -> Tensor:
        """Return the cross-entropy over the label words."""
        return self.train_task.loss(self.model, self.train_task.batch(batch.tolist()))

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Log the accuracy."""
        examples = self.test_task.batch(batch.tolist())
        hits = self.test_task.scores(self.model, examples).argmax(-1) == examples.labels
        self.log("accuracy", hits.float().mean(), batch_size=len(hits), prog_bar=True)


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
    device = next(model.parameters()).device
    train, test = (Classification(read_rows(path), TEMPLATE, tokenizer, device) for path in (given.train, given.test))
    train_loader = DataLoader(range(len(train)), given.batch, shuffle=True)
    test_loader = DataLoader(range(len(test)), 2 * given.batch)

    module = Reviews(model, train, test)
    trainer = pl.Trainer(
        max_steps=given.steps,
        max_epochs=-1,
        accelerator=device.type,
        devices=1,
        default_root_dir=given.out,
        logger=False,
    )
    trainer.validate(module, test_loader)
    trainer.fit(module, train_loader)
    trainer.validate(module, test_loader)
    given.out.mkdir(parents=True, exist_ok=True)
    zoquant.save_delta(given.out / "delta.safetensors", module.views)


if __name__ == "__main__":
    main()
