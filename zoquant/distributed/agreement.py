"""How ranks know that they hold the same bytes, and which of them does not."""

import hashlib
import json
import struct
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor

from zoquant.distributed.exchange import gathered
from zoquant.errors import RankError
from zoquant.optim.optimizer import ZOSGD
from zoquant.record.step import Step

_STRETCH = 256
_MASK = (1 << 64) - 1


class Agreement:
    """Compares what ranks hold: those of one part of the model, see `Sharing.parts`, have to hold the same."""

    def __init__(self, optimizer: ZOSGD, parts: Sequence[Hashable]) -> None:
        self.optimizer = optimizer
        self.parts = parts

    def marks(self) -> list[int]:
        """Return what this rank holds: a digest of settings and last step, and a checksum of the deltas."""
        optimizer = self.optimizer
        rates = [repr(group[name]) for group in optimizer.param_groups for name in ("lr", "eps", "clip")]
        settings = [optimizer.seed, optimizer.probes, *rates]
        state = digest([optimizer.steps, *settings], optimizer.trajectory.steps[-1:])
        return [state, checksum(self._deltas())]

    def check(self, marks: Sequence[Sequence[int]]) -> None:
        """Refuse marks that differ. All ranks call it with the same marks.

        Where deltas differ although the steps do not, every rank replays its own: so even one of two can be named.

        Raises:
            RankError: the rank that differs is named.
        """
        self.compare([state for state, _ in marks], "settings and steps")
        try:
            self.compare([delta for _, delta in marks], "delta")
        except RankError:
            broken = [rank for rank, (holds,) in enumerate(gathered([int(self._holds_its_steps())])) if not holds]
            if not broken:
                raise
            what = f"{_named(broken)} not hold the delta that the steps so far leave."
            raise RankError(f"step {self.optimizer.steps}: {what} {_REMEDY}") from None

    def compare(self, values: Sequence[Hashable], what: str) -> None:
        """Refuse values, one a rank, that differ within a part, as `check` does."""
        for part in dict.fromkeys(self.parts):
            self.compare_some({rank: value for rank, value in enumerate(values) if self.parts[rank] == part}, what)

    def compare_some(self, values: Mapping[int, Hashable], what: str) -> None:
        """Refuse values of some ranks that differ, as `check` does."""
        odd = odd_ones(values)
        if odd:
            whom = "with each other" if len(odd) == len(values) else "with the others"
            raise RankError(f"step {self.optimizer.steps}: {_named(odd)} not agree {whom} on {what}. {_REMEDY}")

    def _holds_its_steps(self) -> bool:
        replayed = self.optimizer.trajectory.deltas(self.optimizer.all_views)
        return checksum(self._deltas()) == checksum([delta for group in replayed for delta in group])

    def _deltas(self) -> list[Tensor]:
        return [buffer.delta for views in self.optimizer.all_views for buffer in views.buffers]


def checksum(deltas: Sequence[Tensor]) -> int:
    """Return a number that differs where one element differs: Σ (2i + 1) · sᵢ modulo 2⁶⁴, sᵢ sums of stretches of bits.

    Odd factors have an inverse, so no change of a single element goes unseen. The number is signed, of 64 bits.
    """
    total = 0
    for number, delta in enumerate(deltas):
        bits = delta.detach().view(torch.int32)
        whole = len(bits) // _STRETCH * _STRETCH
        stretches = bits[:whole].view(torch.int64).view(-1, _STRETCH // 2).sum(1)
        words = torch.cat([stretches, bits[whole:].to(torch.int64)])
        odd = 2 * torch.arange(len(words), dtype=torch.int64, device=words.device) + 1
        total += (2 * number + 1) * int((words * odd).sum())
    return _signed(total)


def digest(settings: Sequence[object], steps: Sequence[Step]) -> int:
    """Return a signed 64-bit number made of settings, that JSON can hold, and steps."""
    found = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=8)
    for step in steps:
        found.update(struct.pack(f"<{len(step.seeds)}Q{len(step.numbers)}d", *step.seeds, *step.numbers))
    return _signed(int.from_bytes(found.digest(), "little"))


def odd_ones(values: Mapping[int, Hashable]) -> list[int]:
    """Return the ranks whose value is not the one that most ranks have; all of them where there is no majority."""
    counts = Counter(values.values()).most_common()
    if len(counts) == 1:
        return []
    if counts[0][1] * 2 <= len(values):
        return sorted(values)
    return sorted(rank for rank, value in values.items() if value != counts[0][0])


_REMEDY = (
    "Nothing was changed; look at the hardware, threads and model there, and go on from the trajectory of another rank."
)


def _named(ranks: Sequence[int]) -> str:
    """Return e.g. "rank 2 does" or "ranks 0, 1 do"."""
    return f"rank {ranks[0]} does" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))} do"


def _signed(number: int) -> int:
    number &= _MASK
    return number - (1 << 64) if number >> 63 else number
