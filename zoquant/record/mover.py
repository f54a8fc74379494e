"""From steps to deltas: one step of a run, or all steps of a replay, through the same arithmetic."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from zoquant.kernels.noise.definition import Noise
from zoquant.kernels.noise.source import NoiseSource
from zoquant.record.rules import SGD, Rule
from zoquant.record.step import Step


class Movable(Protocol):
    """A vector of trained numbers on one device, walked in stretches that fit the cache."""

    device: torch.device
    delta: Tensor

    def tiles(self) -> list[slice]:
        """Return the stretches."""
        ...

    def source_of(self, noise: Noise) -> NoiseSource:
        """Return what draws directions of this vector."""
        ...


class Mover:
    """Moves vectors of trained numbers, and holds what the rule remembers.

    Args:
        buffers: what holds the numbers, such as the buffers of views.
        noise, rule, decay: as for `zoquant.record.group.Group`.
        deltas: the vectors to move, one a buffer; None for the buffers' own.
    """

    def __init__(
        self,
        buffers: Sequence[Movable],
        noise: Noise,
        rule: Rule,
        decay: float = 0.0,
        *,
        deltas: Sequence[Tensor] | None = None,
    ) -> None:
        self.rule = rule
        self.noise = noise
        self.decay = decay
        self.buffers = buffers
        self.deltas = [buffer.delta for buffer in buffers] if deltas is None else list(deltas)
        with torch.inference_mode(False):
            self.states = [[torch.zeros_like(delta) for _ in range(rule.states)] for delta in self.deltas]
        self.count = 0

    def reset(self) -> None:
        """Set the deltas, and what the rule remembers, to zero."""
        self.count = 0
        for tensor in [*self.deltas, *(tensor for states in self.states for tensor in states)]:
            tensor.zero_()

    def advance(self, steps: Sequence[Step]) -> None:
        """Move the deltas by some steps of one group. Writes no view.

        A stretch that fits the cache does all steps before the next one begins, and threads share stretches out: every
        element goes through the same operations in the same order all the same.
        """
        live = [step for step in steps if any(step.derivatives)]
        seeds = [seed for step in live for seed in step.directions]
        for number, buffer in enumerate(self.buffers):
            source = buffer.source_of(self.noise)
            source.prepare(seeds)
            tiles = buffer.tiles()
            if len(live) > 1 and buffer.device.type == "cpu" and torch.get_num_threads() > 1:
                _on_threads(tiles, partial(self._tile, number, source, live, seeds))
            else:
                for tile in tiles:
                    self._tile(number, source, live, seeds, tile)
        self.count += len(live)

    def _tile(self, number: int, source: NoiseSource, live: Sequence[Step], seeds: Sequence[int], tile: slice) -> None:
        delta = self.deltas[number][tile]
        if isinstance(self.rule, SGD) and not self.decay:
            amounts = [-step.rates[0] * amount for step in live for amount in step.amounts]
            source.accumulate(delta, tile.start, seeds, amounts)
            return
        state = [tensor[tile] for tensor in self.states[number]]
        g, scratch = torch.empty_like(delta), torch.empty_like(delta)
        directions = source.directions(seeds, tile.start, delta.numel())
        for count, step in enumerate(live, self.count + 1):
            g.zero_()
            for amount in step.amounts:
                g.add_(next(directions).mul_(amount))
            if self.decay:
                delta.mul_(1 - step.rates[0] * self.decay)
            delta.add_(self.rule.transform(g, state, count, scratch).mul_(-step.rates[0]))


def _on_threads(tiles: Sequence[slice], work: Callable[[slice], None]) -> None:
    """Do the work of each stretch on as many threads as torch may use, each of them with one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # new threads take over this number
    try:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, tiles))
    finally:
        torch.set_num_threads(threads)
