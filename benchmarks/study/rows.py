"""The lines of the table, in the order of their worth."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from zoquant.optim.estimators import RobustClip

Method = Literal["zero-shot", "default", "zeroth-order", "batched", "first-order"]
Model = Literal["checkpoint", "dense", "aqlm"]

VALUES: dict[str, Any] = {"subspace": "values"}
"""What a row of single values says; without it a run chooses rows and columns by itself."""
MATRICES = ("model.layers.*",)
"""The matrices of the layers, without the embedding: rows and columns cannot move a table that is looked up."""
UPPER_MIDDLE = ("*.layers.1[5-9].*", "*.layers.2[0-3].*")
"""Nine of thirty layers, in which a linearized model of this task finds the most signal for the noise."""
QZO_SCALES = ("model.layers.*.d",)
"""What QZO calls the scales: the factor of the integer codes of each matrix, without offsets and embedding."""
QZO = {
    **VALUES,
    "space": "absolute",
    "coupled": False,
    "noise": "gaussian",
    "clip": 100.0,
    "schedule": "constant",
    "include": QZO_SCALES,
}
"""`presets.qzo` but for lr and eps, as arguments of `Settings`."""
MEZO = {
    **VALUES,
    "space": "absolute",
    "coupled": False,
    "noise": "gaussian",
    "clip": math.inf,
    "schedule": "constant",
    "roles": ("dense",),
}
"""`presets.mezo` but for lr and eps."""
FZOO = {
    **VALUES,
    "space": "absolute",
    "coupled": False,
    "estimator": "fzoo",
    "probes": 8,
    "lr": 1e-6,
    "eps": 1e-3,
    "schedule": "constant",
}
"""`presets.fzoo`."""
FACTORS = (1.0, 1 / 3, 3.0)
"""The grid of QZO, around the lr and eps that a calibration measures."""
SEEDS = (0, 1, 2)
TWO = (0, 1)
"""Seeds of the rows that only compare parts of a run with each other, after a quarter of the forwards."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: what the line is called.
        forwards: forwards of a run, those of its calibration included.
        settings: what differs from the defaults of `Settings`, or of `ZOSGD` for a row of rows and columns.
        method: how it is trained.
        model: what is trained: the quantized checkpoint, its dense float32 copy, or the AQLM-shaped model.
        factors: lr and eps as multiples of what the calibration of QZO found; None for a row that has its own.
        best: whether lr and eps are those of the best run of the grid.
        seeds: seeds of its runs.
        early: whether all its seeds come at once; the others take turns, so that every line soon has one.
    """

    name: str
    forwards: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    method: Method = "zeroth-order"
    model: Model = "checkpoint"
    factors: tuple[float, float] | None = None
    best: bool = False
    seeds: tuple[int, ...] = SEEDS
    early: bool = False


def rows(forwards: int, long: int) -> list[Row]:
    """Return every line of the table.

    Args:
        forwards: N, what the comparison with QZO is made at; parts of a run are compared at N/4.
        long: forwards of the run that the first-order bound is compared with.
    """
    return [
        Row("zero-shot", 0, method="zero-shot", seeds=(0,), early=True),
        *default(forwards, long),
        *two_point(forwards),
        *qzo(forwards),
        *first_order(min(75, forwards)),
        *(Row(name, forwards // 4, VALUES | settings, seeds=TWO) for name, settings in variants().items()),
        Row("batch 64, N forwards", forwards, VALUES | {"batch_size": 64}, seeds=(0,)),
        *(Row(f"eps {eps:g}", forwards // 4, VALUES | {"eps": eps}, seeds=TWO) for eps in (3e-3, 1e-2, 1e-1)),
        *codebooks(forwards // 4),
        *mezo(forwards),
        *batched(forwards // 4),
    ]


def jobs(lines: Sequence[Row]) -> Iterator[tuple[Row, int]]:
    """Yield every run, a line and a seed: early lines with all their seeds, then one seed of each of the others."""
    yield from ((row, seed) for row in lines if row.early for seed in row.seeds)
    late = [row for row in lines if not row.early]
    for turn in range(max((len(row.seeds) for row in late), default=0)):
        yield from ((row, row.seeds[turn]) for row in late if turn < len(row.seeds))


def grid(lines: Sequence[Row]) -> list[Row]:
    """Return the lines of the grid of QZO."""
    return [row for row in lines if row.factors is not None]


def default(forwards: int, long: int) -> list[Row]:
    """Return what `zoquant train` does with no number given, at shares of the forwards and for long."""
    return [
        Row("default", forwards, method="default", early=True),
        Row("default, N/8 forwards", forwards // 8, method="default", early=True),
        Row("default, N/4 forwards", forwards // 4, method="default", early=True),
        Row("default, long", long, method="default", seeds=(0,), early=True),
    ]


def two_point(forwards: int) -> list[Row]:
    """Return two-point probes of all values with calibrated numbers."""
    return [
        Row("two-point, calibrated", forwards, VALUES, early=True),
        Row("two-point, calibrated, N/8 forwards", forwards // 8, VALUES, early=True),
        Row("two-point, calibrated, N/4 forwards", forwards // 4, VALUES, seeds=TWO, early=True),
    ]


def qzo(forwards: int) -> list[Row]:
    """Return QZO: the grid, its best, and the paper's own numbers."""
    pairs = [(lr, eps) for lr in FACTORS for eps in FACTORS]
    return [
        *(
            Row(f"qzo, lr x {lr:.2g}, eps x {eps:.2g}", forwards, QZO, factors=(lr, eps), seeds=(0,), early=True)
            for lr, eps in pairs
        ),
        Row("qzo, the best of the grid", forwards, QZO, best=True, early=True),
        Row("qzo, the paper's numbers", forwards, {**QZO, "lr": 1e-7, "eps": 1e-3}, seeds=(0,), early=True),
    ]


def first_order(steps: int) -> list[Row]:
    """Return the upper bound, and what of it is to be had in the layers that move by default."""
    name = "first-order, Adam, lr 2e-3"
    return [
        Row(name, steps, method="first-order", early=True),
        Row(f"{name}, layers 15 to 23", steps, {"include": UPPER_MIDDLE}, method="first-order", seeds=(0,)),
        *(
            Row(f"{name}, rows and columns of {which}", steps, chosen, method="first-order", seeds=(0,))
            for which, chosen in (
                ("layers 15 to 23", {"include": UPPER_MIDDLE, "factored": True}),
                ("all layers", {"include": MATRICES, "factored": True}),
            )
        ),
    ]


def variants() -> dict[str, dict[str, Any]]:
    """Return what differs from two-point probes of all values, one thing at a time; numbers are calibrated."""
    return {
        "without the embedding": {"include": MATRICES},
        "layers 20 to 29": {"include": ("*.layers.2?.*",)},
        "layers 15 to 23": {"include": UPPER_MIDDLE},
        "one-sided, 1 probe": {"estimator": "one-sided"},
        "one-sided, 7 probes": {"estimator": "one-sided", "probes": 7},
        "two-point, 4 probes": {"probes": 4},
        "fzoo, 7 probes": {"estimator": "fzoo", "probes": 7},
        "momentum": {"rule": "momentum"},
        "sign": {"rule": "sign"},
        "adam": {"rule": "adam"},
        "decay 0.1": {"decay": 0.1},
        "constant lr": {"schedule": "constant"},
        "no clip": {"clip": math.inf},
        "robust clip": {"clip": RobustClip()},
        "gaussian": {"noise": "gaussian"},
        "sphere": {"noise": "sphere"},
        "a tenth of the elements": {"density": 0.1},
        "a fifth of the layers": {"density": 0.2, "unit": "layer"},
        "relative, uncoupled": {"coupled": False},
        "relative, d alone": {"coupled": False, "include": ("*.d",)},
        "absolute, d and m": {"coupled": False, "space": "absolute"},
        "absolute, d alone": {"coupled": False, "space": "absolute", "include": ("*.d",)},
        "preset fzoo": FZOO,
    }


def codebooks(forwards: int) -> list[Row]:
    """Return what moves on the AQLM-shaped model, one seed each: none of them leaves chance in these forwards."""
    roles = {"scales": ("scale",), "codebooks": ("codebook",), "scales and codebooks": ("scale", "codebook")}
    return [Row("aqlm, zero-shot", 0, method="zero-shot", model="aqlm", seeds=(0,))] + [
        Row(f"aqlm, {name}", forwards, VALUES | {"roles": chosen}, model="aqlm", seeds=(0,))
        for name, chosen in roles.items()
    ]


def mezo(forwards: int) -> list[Row]:
    """Return MeZO on the dense float32 model: the paper's numbers, and ten times its lr for a model this small."""
    return [
        Row(f"mezo, dense float32, lr {lr:g}", forwards, {**MEZO, "lr": lr, "eps": 1e-3}, model="dense", seeds=(0,))
        for lr in (1e-6, 1e-5)
    ]


def batched(forwards: int) -> list[Row]:
    """Return row-plus-column probes: one direction, calibrated, and one for each example, which no calibration sees.

    Group-relative derivatives are of size 1, so the mean of 16 moves a value by lr / 4 a step; over 125 steps with lr
    falling to 0 that is a walk of 1.6 lr, and `calibration.WALK` of it gives the lr.
    """
    own = {"directions": 16, "split": True, "eps": 3e-2, "include": MATRICES}
    one = {"directions": 1, "split": False, "include": MATRICES}
    relative = {**own, "estimator": "group-relative", "lr": 9e-2}
    return [
        Row("row-plus-column, one direction", forwards, one, method="batched", seeds=TWO),
        *(
            Row(
                f"row-plus-column, a direction an example, lr {lr:g}",
                forwards,
                {**own, "lr": lr},
                method="batched",
                seeds=TWO,
            )
            for lr in (8e-3, 2.7e-3)
        ),
        Row("row-plus-column, group-relative (GRZO)", forwards, relative, method="batched", seeds=TWO),
    ]
