"""A group of a run: views that share a space, a noise, a rule and a decay."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from torch import Tensor

from zoquant.errors import BaseMismatchError, CheckpointError
from zoquant.kernels.noise.definition import Noise
from zoquant.record.mover import Mover
from zoquant.record.rows_and_columns import RowsAndColumnsMover
from zoquant.record.rules import SGD, Rule, rule_from_dict, rule_to_dict
from zoquant.views.fingerprint import check_base
from zoquant.views.flat_buffer import SPACES, Space
from zoquant.views.model_views import Views

Subspace = Literal["values", "rows-columns"]
SUBSPACES: tuple[Subspace, ...] = ("values", "rows-columns")


@dataclass(frozen=True)
class Group:
    """Views of a run that move alike.

    Attributes:
        base: fingerprint of the base by key.
        space: what delta means.
        noise: distribution of the directions.
        coupled: whether the views of one layer, role and shape shared their delta.
        rule: update rule.
        decay: pull back to the base, per unit of lr.
    """

    base: dict[str, str]
    space: Space = "relative"
    noise: Noise = field(default_factory=Noise)
    coupled: bool = False
    rule: Rule = field(default_factory=SGD)
    decay: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that JSON can hold; a ValueError for a rule that no file could name."""
        return {
            "space": self.space,
            "noise": self.noise.to_dict(),
            "coupled": self.coupled,
            "rule": rule_to_dict(self.rule),
            "decay": self.decay,
            "base": dict(self.base),
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any], what: str) -> "Group":
        """Build a group from what `to_dict` returned; a CheckpointError that begins with `what` for anything else."""
        base, space, coupled, decay = (state.get(name) for name in ("base", "space", "coupled", "decay"))
        typed = isinstance(coupled, bool) and isinstance(decay, float) and 0 <= decay < math.inf
        typed &= isinstance(base, dict) and all(isinstance(print_, str) for print_ in base.values())
        if not (typed and space in SPACES):
            raise CheckpointError(f"{what}: the parts do not fit together. Is the file whole?")
        try:
            noise, rule = Noise(**state["noise"]), rule_from_dict(state["rule"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise CheckpointError(f"{what}: the header is not that of a trajectory: {error} Update zoquant.") from error
        return cls(cast(dict[str, str], base), cast(Space, space), noise, bool(coupled), rule, cast(float, decay))

    def check(self, views: Views, what: str) -> None:
        """Refuse views that this group was not made of.

        Raises:
            BaseMismatchError: base, keys or coupling differ, or deltas are shared in a space where that has no meaning.
        """
        if views.coupled != self.coupled:
            raise BaseMismatchError(
                f"{what}: made with coupled={self.coupled}, these views have coupled={views.coupled}. Attach as the "
                "run did."
            )
        if self.space == "absolute" and views.coupled_keys():
            raise BaseMismatchError(
                f"{what}: {' and '.join(views.coupled_keys()[0])} share their delta, which is only right in relative "
                "space, but it is of absolute space. Do the run again with coupled=False."
            )
        here = views.fingerprints()
        check_base(what, self.base, here)
        check_base("these views", here, self.base)

    def mover(self, views: Views, subspace: Subspace, deltas: Sequence[Tensor] | None = None) -> Mover:
        """Return what moves `deltas`, one a buffer of the views, or None for their own, as steps of this group say.

        Raises:
            UnsupportedLayoutError: rows and columns move, and a layer of these views has none.
        """
        if subspace == "values":
            return Mover(views.buffers, self.noise, self.rule, self.decay, deltas=deltas)
        return RowsAndColumnsMover(views, self.noise, self.rule, self.decay, deltas=deltas)
