"""How well a model does: metrics by name, each with a confidence interval."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from zoquant.errors import FLOAT16_OVERFLOWS, LossError, shown

_Z = 1.96


@dataclass(frozen=True)
class Metric:
    """One number.

    Attributes:
        value: the estimate.
        interval: its 95 % confidence interval; None where one example, or an infinite one, does not tell.
    """

    value: float
    interval: tuple[float, float] | None

    @classmethod
    def share(cls, scores: Sequence[float]) -> "Metric":
        """Return the mean of scores from 0 to 1, with Wilson's interval.

        Where every score is 0 or 1 it is the interval of a share. Otherwise it is rather too wide: no number from 0 to
        1 varies more than a share of the same mean.

        Source: Wilson (1927), J. Am. Stat. Assoc. 22, 209.

        Raises:
            LossError: a score is NaN.
        """
        n, p = len(scores), _number(sum(scores) / len(scores), len(scores))
        middle, half = p + _Z * _Z / (2 * n), _Z * math.sqrt(p * (1 - p) / n + _Z * _Z / (4 * n * n))
        return cls(p, ((middle - half) / (1 + _Z * _Z / n), (middle + half) / (1 + _Z * _Z / n)))

    @classmethod
    def mean(cls, sums: Sequence[float], weights: Sequence[float] | None = None) -> "Metric":
        """Return Σ sums / Σ weights over examples, with the normal interval of a ratio.

        Args:
            sums: what each example adds, e.g. the loss of its tokens.
            weights: of how much that is the sum, e.g. the number of its tokens; None for 1 each.

        Raises:
            LossError: the value is NaN.
        """
        weights = [1.0] * len(sums) if weights is None else weights
        n, whole = len(sums), sum(weights)
        value = _number(sum(sums) / whole, n)
        if n < 2 or math.isinf(value):
            return cls(value, None)
        residual = sum((s - value * w) ** 2 for s, w in zip(sums, weights, strict=True))
        half = _Z * math.sqrt(residual * n / (n - 1)) / whole
        return cls(value, (value - half, value + half))


@dataclass(frozen=True)
class Sample:
    """What a model wrote for one example.

    Attributes:
        prompt: what it was given.
        text: what it wrote.
        references: the answers that count as right.
        score: value of the primary metric.
    """

    prompt: str
    text: str
    references: tuple[str, ...]
    score: float


@dataclass(frozen=True)
class Evaluation:
    """How well a model does.

    Attributes:
        primary: name of the metric that says how good the model is.
        metrics: all of them by name; `"loss"` is always there, in nats.
        examples: how many were seen.
        samples: what was said of some rows, of tasks that generate or have label words.
        answers: of a few labels, how often those of each true label (a row) were answered with each (a column), in the
            order of the labels; empty for other tasks.
    """

    primary: str
    metrics: Mapping[str, Metric]
    examples: int
    samples: tuple[Sample, ...] = field(default=(), compare=False)
    answers: tuple[tuple[int, ...], ...] = ()

    def __getitem__(self, name: str) -> float:
        return self.metrics[name].value

    @property
    def accuracy(self) -> float:
        """Share of examples answered right, for tasks that have it."""
        return self["accuracy"]

    @property
    def loss(self) -> float:
        """Mean loss in nats."""
        return self["loss"]

    @property
    def score(self) -> Metric:
        """The primary metric."""
        return self.metrics[self.primary]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data without the samples: each metric by its name, its interval as `<name>_interval`."""
        found: dict[str, Any] = {"primary": self.primary, "examples": self.examples}
        found |= {"answers": [list(row) for row in self.answers]} if self.answers else {}
        for name, metric in self.metrics.items():
            found |= {name: metric.value, f"{name}_interval": metric.interval and list(metric.interval)}
        return found

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> "Evaluation":
        """Return what `to_dict` was called on, without its samples.

        Raises:
            LookupError, TypeError, ValueError, OverflowError: it was called on nothing that made this.
        """
        metrics = {}
        for name in (key.removesuffix("_interval") for key in found if key.endswith("_interval")):
            value, pair = _plain(found, name), found[f"{name}_interval"]
            if math.isnan(value):
                raise ValueError(f"{name} is NaN, expected a number")
            metrics[name] = Metric(value, None if pair is None else (_plain(pair, 0), _plain(pair, 1)))
        if found["primary"] not in metrics:
            raise ValueError(f"no metric stands there by the name of its primary, {shown(found['primary'])}")
        answers = tuple(tuple(int(_plain(row, at)) for at in range(len(row))) for row in found.get("answers", ()))
        return cls(found["primary"], metrics, int(_plain(found, "examples")), answers=answers)


def _plain(found: Any, name: str | int) -> float:
    """Return a number of plain data."""
    if type(found[name]) not in (int, float):
        raise TypeError(f"{name} is {shown(found[name])}, expected a number")
    return float(found[name])


def _number(value: float, examples: int) -> float:
    if math.isnan(value):
        raise LossError(
            f"a metric of {examples} examples is NaN, expected a number: the output holds NaN. {FLOAT16_OVERFLOWS}"
        )
    return value
