"""What decides the bytes of a training run. Every field is a flag of `zoquant train` and a key of its config file."""

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, get_args

from torch import nn

from zoquant.errors import one_of
from zoquant.kernels.noise.definition import Kind, Noise, Unit
from zoquant.optim.backward.descent import LR, GradientDescent, Reduce
from zoquant.optim.choosing import Numbers, by_rule
from zoquant.optim.estimators import ESTIMATORS, GroupRelative
from zoquant.optim.optimizer import ZOSGD
from zoquant.optim.parameter_groups import check, check_run, rates_of
from zoquant.protocol import Role
from zoquant.record.group import SUBSPACES
from zoquant.record.rules import RULES, Rule
from zoquant.views.attach import attach
from zoquant.views.flat_buffer import Space
from zoquant.views.model_views import Views

Schedule = Literal["constant", "linear", "cosine"]
Way = Literal["forward", "backward", "linear-probe"]
AUTO: Literal["auto"] = "auto"
_OF_LINEAR_PROBE = {"steps", "batch_size", "seed", "gradient", "if_loss_rises"}


@dataclass(frozen=True)
class Settings:
    """What decides the bytes of a run, together with model and data. The text beside a field says what it means."""

    steps: Annotated[int, "Number of steps."] = 300
    batch_size: Annotated[int, "Examples a step."] = 16
    micro_batches: Annotated[
        int, "Forwards that a batch is cut into, a power of 2; processes of torchrun share them."
    ] = 1
    lr: Annotated[float | None, "Learning rate at the start; auto: calibrated, or set by rule."] = None
    eps: Annotated[float | None, "Length of a probe, in units of space; auto: calibrated, or set by rule."] = None
    clip: Annotated[
        float | None, "Bound on the derivative, inf for none; auto: none, or calibrated with lr or eps."
    ] = None
    subspace: Annotated[
        Literal["auto", "values", "rows-columns"],
        "What a direction has numbers for: values; or rows-columns, with a direction for each example; auto chooses.",
    ] = AUTO
    gradient: Annotated[
        Way,
        "How a step finds its direction: by forwards alone, or by a backward; linear-probe: no steps, the norm in "
        "front of the head is fitted to one forward of each row, for label words of one token.",
    ] = "forward"
    checkpoint: Annotated[bool, "Backward: keep of each layer its input alone, and run the layer again."] = False
    forward_steps: Annotated[
        int, "Backward: so many steps by forwards alone follow, with numbers of their own, on the objective."
    ] = 0
    if_loss_rises: Annotated[
        Literal["auto", "halve", "keep"],
        "Where the loss of the examples rises above that of the start: halve the learning rate, or keep it; auto: "
        "halve where lr is not given.",
    ] = AUTO
    schedule: Annotated[Schedule, "Course of the learning rate: constant, linear or cosine."] = "linear"
    probes: Annotated[int, "Directions a step."] = 1
    seed: Annotated[int, "Seed of noise and batches: the same seed gives the same bytes."] = 0
    noise: Annotated[Kind, "Distribution of the directions: rademacher, gaussian or sphere."] = "rademacher"
    density: Annotated[float, "Share of the units that a direction moves."] = 1.0
    unit: Annotated[Unit, "What moves or stays as a whole: element, view or layer."] = "element"
    space: Annotated[Space, "What delta means: relative or absolute."] = "relative"
    estimator: Annotated[str, "What is made of the losses: two-point, one-sided, fzoo or group-relative."] = "two-point"
    rule: Annotated[
        str | None, "How deltas move: sgd, momentum, sign or adam. Not given: sgd, or adam with a backward."
    ] = None
    decay: Annotated[float, "Pull back to the base, per unit of lr."] = 0.0
    coupled: Annotated[bool, "Move the views of one layer, role and shape together."] = True
    roles: Annotated[tuple[Role, ...], "What moves: scale, zero, codebook, dense, adapter; may be repeated."] = (
        "scale",
    )
    include: Annotated[
        tuple[str, ...] | None,
        "Keys to move, as shell patterns; may be repeated. Not given: all, of rows-columns the upper middle.",
    ] = None
    exclude: Annotated[tuple[str, ...] | None, "Keys to leave alone; may be repeated."] = None

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise ValueError(f"steps is {self.steps} and batch_size {self.batch_size}, expected at least 1 each.")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}, expected 0 or more.")
        if not (1 <= self.micro_batches <= self.batch_size and self.micro_batches.bit_count() == 1):
            most = f"expected a power of 2 of at most batch_size, {self.batch_size}"
            raise ValueError(f"micro_batches is {self.micro_batches}, {most}.")
        known = {
            "schedule": get_args(Schedule), "gradient": get_args(Way), "subspace": (AUTO, *SUBSPACES),
            "estimator": ESTIMATORS, "rule": (None, *RULES),
        }  # fmt: skip
        for name, choices in known.items():
            if (value := getattr(self, name)) not in choices:
                raise ValueError(f"{name} is {value!r}, expected {one_of(filter(None, choices), value)}")
        if self.forward_steps < 0 or (self.forward_steps and self.gradient != "backward"):
            raise ValueError(f"forward_steps is {self.forward_steps}, expected 0, or more with gradient backward.")
        if self.gradient == "backward":
            self._check_backward()
        elif self.checkpoint:
            raise ValueError("checkpoint is for gradient backward: forwards keep nothing. Leave it out.")
        elif self.gradient == "linear-probe":
            self._check_linear_probe()
        elif self.subspace == "rows-columns":
            self._check_rows_columns()
        self._check_numbers()

    def _check_backward(self) -> None:
        """Refuse what is said of directions: a backward has none."""
        usual = type(self).__dataclass_fields__
        for name in ("eps", "probes", "noise", "density", "unit", "estimator"):
            if getattr(self, name) != usual[name].default:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, but gradient is backward, which draws no directions. Leave "
                    f"{name} out, or take gradient forward."
                )
        if self.subspace == "rows-columns":
            raise ValueError("subspace is 'rows-columns', but gradient is backward, which moves values. Leave it out.")

    def _check_linear_probe(self) -> None:
        """Refuse what is said of directions, rates and keys: there is one fit, of the norm."""
        usual = type(self).__dataclass_fields__
        for name in [each for each in usual if each not in _OF_LINEAR_PROBE]:
            if getattr(self, name) != usual[name].default:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, but gradient is linear-probe, which fits the norm in front of "
                    f"the head and knows steps, batch_size and seed alone. Leave {name} out."
                )

    def _check_rows_columns(self) -> None:
        """Refuse what a direction for each example leaves no choice of."""
        for name, fits, expected in (
            ("batch_size", self.batch_size >= 2, "at least 2: a derivative is relative to those of the other examples"),
            ("estimator", self.estimator in ("two-point", "group-relative"), "group-relative"),
            ("probes", self.probes == 1, "1: each example has a direction of its own"),
            ("space", self.space == "relative", "relative"),
        ):
            if not fits:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, with subspace rows-columns expected {expected}. Or take "
                    "subspace values."
                )

    def _check_numbers(self) -> None:
        """Refuse numbers that are out of their range, before any model is loaded."""
        unset: dict[str, float | None] = {"lr": 0.0, "eps": 1.0, "clip": None}
        given = {name: getattr(self, name) for name in unset if getattr(self, name) is not None}
        clip = None if self.clip == math.inf else self.clip
        try:
            check("decay", self.decay, self.decay >= 0, "at least 0")
            rates_of({**unset, **given, "clip": clip}, self.decay)
            if self.subspace != "rows-columns" and self.gradient == "forward":
                check_run(ESTIMATORS[self.estimator](), self.probes, "values", None)
        except ValueError as error:
            raise ValueError(str(error).removeprefix("ZOSGD: ")) from error
        Noise(self.noise, self.density, self.unit)

    def resolved(self) -> "Settings":
        """Return the settings with what a run by backwards takes where nothing is given; forwards choose later."""
        if self.if_loss_rises == AUTO:
            return replace(self, if_loss_rises="halve" if self.halves else "keep").resolved()
        if self.gradient != "backward":
            return self
        return replace(self, subspace="values", lr=LR if self.lr is None else self.lr, rule=self.rule or "adam")

    @property
    def halves(self) -> bool:
        """Whether the learning rate is halved where the loss rises."""
        return self.if_loss_rises == "halve" or (self.if_loss_rises == AUTO and self.lr is None)

    @property
    def missing(self) -> tuple[str, ...]:
        """The numbers that are not given: a calibration has to choose them, or for rows and columns a rule."""
        if self.gradient != "forward":
            return ()
        names = tuple(name for name in ("lr", "eps") if getattr(self, name) is None)
        if self.subspace == "rows-columns":
            return names
        return (*names, "clip") if names and self.clip is None else names

    def rate_at(self, step: int) -> float:
        """Return the learning rate of a step relative to the first: a pure function, so that a run goes on anywhere."""
        left = 1 - step / self.steps
        if self.schedule == "linear":
            return left
        if self.schedule == "cosine":
            return (1 - math.cos(math.pi * left)) / 2
        return 1.0

    def following(self) -> "Settings":
        """Return the settings of the forwards that follow a run by backwards: what is not shared is as by default."""
        shared = ("batch_size", "micro_batches", "schedule", "seed", "coupled", "roles", "include", "exclude")
        return Settings(steps=self.forward_steps, **{name: getattr(self, name) for name in shared})

    def update(self) -> Rule:
        """Return the rule by which deltas move."""
        return RULES[self.rule or ("adam" if self.gradient == "backward" else "sgd")]()

    def descent(self, model: nn.Module, views: Views, reduce: Reduce | None = None) -> GradientDescent:
        """Return what makes the steps of a run by backwards."""
        return GradientDescent(
            model, views, lr=LR if self.lr is None else self.lr, rule=self.update(),
            clip=None if self.clip == math.inf else self.clip, decay=self.decay, space=self.space,
            checkpoint=self.checkpoint, reduce=reduce,
        )  # fmt: skip

    def by_rule(self) -> Numbers:
        """Return the numbers of a run on rows and columns: those that are not given are set without a forward."""
        rates = [self.rate_at(step) for step in range(self.steps)]
        clip = None if self.clip == math.inf else self.clip
        return by_rule(self.update(), self.batch_size, rates, eps=self.eps, lr=self.lr, clip=clip)

    def attach(self, model: nn.Module) -> Views:
        """Return the views of a model that these settings name, see `zoquant.attach`."""
        return attach(model, roles=self.roles, include=self.include, exclude=self.exclude, coupled=self.coupled)

    def optimizer(self, views: Views) -> ZOSGD:
        """Return the optimizer; numbers that a calibration has to choose stand at its defaults."""
        if self.subspace == "rows-columns":
            numbers = self.by_rule()
            return ZOSGD(
                views, subspace="rows-columns", probes=self.batch_size, lr=numbers.lr, eps=numbers.eps,
                clip=numbers.clip, seed=self.seed,
                noise=Noise(self.noise, self.density, self.unit), estimator=GroupRelative(), rule=self.update(),
                decay=self.decay,
            )  # fmt: skip
        chosen: dict[str, Any] = {
            name: getattr(self, name) for name in ("lr", "eps") if getattr(self, name) is not None
        }
        return ZOSGD(
            views, clip=None if self.clip == math.inf else self.clip, seed=self.seed, probes=self.probes,
            noise=Noise(self.noise, self.density, self.unit), space=self.space, decay=self.decay,
            estimator=ESTIMATORS[self.estimator](), rule=self.update(), **chosen,
        )  # fmt: skip
