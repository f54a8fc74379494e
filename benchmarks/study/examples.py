"""SST-2 with MeZO's prompt: 1,000 training examples drawn by the seed, 256 of dev for choices, all for reports."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zoquant.tasks import Classification, Template

TEMPLATE = Template("{sentence} It was {label}", {"0": "terrible", "1": "great"})
"""Source: MeZO (arXiv 2305.17333, table 13)."""
TRAIN, CHOICE = 1000, 256
_CHOICE_SEED = 1


@dataclass(frozen=True)
class Examples:
    """The examples of a run.

    Attributes:
        train: drawn from the seed of the run.
        choice: the part of dev that curves and choices are made on, the same for all runs.
        dev: all of dev.
        test: all of test.
    """

    train: Classification
    choice: Classification
    dev: Classification
    test: Classification


def examples(folder: Path, tokenizer: Any, seed: int) -> Examples:
    """Read the examples of a run.

    Args:
        folder: has train.tsv, dev.tsv and test.tsv.
        tokenizer: of the model.
        seed: of the run.
    """
    train, dev, test = (read_tsv(folder / f"{part}.tsv") for part in ("train", "dev", "test"))
    parts = (_drawn(train, seed, TRAIN), _drawn(dev, _CHOICE_SEED, CHOICE), dev, test)
    return Examples(*(Classification(part, TEMPLATE, tokenizer, torch.device("cpu")) for part in parts))


def read_tsv(path: Path) -> list[dict[str, str]]:
    """Read lines of a sentence, a tab and a label."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [dict(zip(("sentence", "label"), line.rsplit("\t", 1), strict=True)) for line in lines if line.strip()]


def _drawn(rows: list[dict[str, str]], seed: int, count: int) -> list[dict[str, str]]:
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return [rows[i] for i in order[:count].tolist()]
