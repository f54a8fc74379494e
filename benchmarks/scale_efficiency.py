"""What a second process brings: two ranks of one thread each, on two cores, against one process of one thread.

    python -m benchmarks.scale_efficiency [checkpoint] [--cycles 9] [--out benchmarks/results/scale.json]

Both processes are there all the time and hold one state. In each cycle they do four things, in an order that rotates:

- `first`, `second`: one of them does a step alone, while the other waits without using its core;
- `apart`: both do the same step at once, and do not talk;
- `together`: both do one step, of which each computes one side of the direction.

Efficiency is the time of a step alone over twice that of one together, and its ceiling the time alone over that apart:
what two processes that have nothing to do with each other lose to the machine, its memory and whoever else uses it.
By processor time it is the time of a step alone over what both ranks used for one together. Waiting is told apart: of
the time that a rank spends in the exchange of the losses, what the later rank spends is the exchange itself, and the
rest is idling, because one side was evaluated faster than the other. Figures are medians over the cycles; the first
cycle warms up. That both hold the same bytes is checked at each step together, and at the end. Seconds of a forward and
of adding a direction are processor time.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

import zoquant
from zoquant.cli.bench.machine import machine
from zoquant.cli.demo import checkpoint
from zoquant.distributed import DistributedZO
from zoquant.distributed.agreement import checksum
from zoquant.record.step import Step

ROWS, TOKENS = 8, 64
ALONE = ("first", "second")

Times = dict[str, float]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoint", nargs="?", default=None)
    parser.add_argument("--cycles", type=int, default=9)
    parser.add_argument("--out", type=Path, default=None)
    chosen = parser.parse_args()
    before, start = os.getloadavg()[0], time.perf_counter()
    ranks = measure(chosen.checkpoint or str(checkpoint()), chosen.cycles)
    torch.set_num_threads(1)
    found = summary(ranks) | {
        "cycles": chosen.cycles,
        "seconds": time.perf_counter() - start,
        "load_average": [before, os.getloadavg()[0]],
        "machine": machine(torch.device("cpu")),
    }
    text = json.dumps(found, indent=1)
    print(text)
    if chosen.out is not None:
        chosen.out.write_text(text + "\n")


def measure(path: str, cycles: int) -> list[dict[str, Any]]:
    """Return what each of the two ranks saw."""
    with tempfile.TemporaryDirectory() as folder:
        start: Callable[..., Any] = start_processes
        start(_rank, (path, cycles, folder), nprocs=2, start_method="spawn")
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(2)]


def summary(ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the medians over the cycles.

    Args:
        ranks: of each rank its cycles, by phase the `wall`, `processor` and `wait` seconds; and a checksum.

    Raises:
        RuntimeError: the ranks did not come to the same bytes.
    """
    if ranks[0]["checksum"] != ranks[1]["checksum"]:
        raise RuntimeError("the ranks ended with other checksums, expected one: the bytes differ.")
    cycles = [list(pair) for pair in zip(ranks[0]["cycles"], ranks[1]["cycles"], strict=True)]
    alone = [(a["first"]["wall"] + b["second"]["wall"]) / 2 for a, b in cycles]
    apart = [max(each["apart"]["wall"] for each in pair) for pair in cycles]
    together = [max(each["together"]["wall"] for each in pair) for pair in cycles]
    busy = [(a["first"]["processor"] + b["second"]["processor"]) / 2 for a, b in cycles]
    busy_together = [sum(each["together"]["processor"] for each in pair) for pair in cycles]
    waits = [sorted(each["together"]["wait"] for each in pair) for pair in cycles]
    return {
        "step_seconds_1": statistics.median(alone),
        "step_seconds_apart": statistics.median(apart),
        "step_seconds_2": statistics.median(together),
        "efficiency": statistics.median(alone) / (2 * statistics.median(together)),
        "ceiling": statistics.median(alone) / statistics.median(apart),
        "efficiency_by_processor_time": statistics.median(busy) / statistics.median(busy_together),
        "efficiency_by_cycle": [one / (2 * two) for one, two in zip(alone, together, strict=True)],
        "exchange_seconds": statistics.median(least for least, _ in waits),
        "idle_seconds": statistics.median(most - least for least, most in waits),
        "forward_seconds": statistics.median(each["forward"] for each in ranks),
        "direction_seconds": statistics.median(each["direction"] for each in ranks),
        "bytes_a_step": ranks[0]["bytes"],
    }


def _rank(rank: int, path: str, cycles: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    model: Any = zoquant.load(path, compute_dtype=torch.float32, device="cpu")[0]
    optimizer = zoquant.ZOSGD(zoquant.attach(model), lr=1e-3, eps=1e-2)
    ranks, waiting = DistributedZO(optimizer), Waiting()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.vocab_size, (ROWS, TOKENS), generator=generator)
    forwards: list[float] = []

    def loss() -> float:
        start = time.process_time()
        value = float(model(input_ids=ids, labels=ids).loss)
        forwards.append(time.process_time() - start)
        return value

    seen: list[dict[str, Times]] = [{} for _ in range(cycles + 1)]
    for number, found in enumerate(seen):
        for phase in order(number):
            dist.barrier()
            if phase in ("apart", "together", ALONE[rank]):
                stepper = ranks if phase == "together" else optimizer
                found[phase] = waiting.timed(partial(stepper.step, loss))
    told = {
        "cycles": seen[1:],
        "forward": statistics.median(forwards[len(forwards) // len(seen) :]),
        "bytes": ranks.bytes_a_step(),
        "checksum": checksum([buffer.delta for buffer in optimizer.views.buffers]),
        "direction": _direction_seconds(optimizer),
    }
    (Path(folder) / f"{rank}.json").write_text(json.dumps(told))
    dist.barrier()
    dist.destroy_process_group()


def order(cycle: int) -> list[str]:
    """Return the phases of a cycle: each kind comes first in one of three, and each rank in one of two."""
    kinds = [ALONE if cycle % 2 else ALONE[::-1], ("apart",), ("together",)]
    first = cycle % len(kinds)
    return [phase for kind in kinds[first:] + kinds[:first] for phase in kind]


class Waiting:
    """Times steps, and within them the gathering of the losses: waiting for the other rank, and the exchange itself."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._gather = dist.all_gather
        dist.all_gather = self._timed_gather  # type: ignore[assignment]

    def timed(self, step: Callable[[], object]) -> Times:
        """Do a step, and return its `wall` and `processor` seconds, and those that it spent in the gathering."""
        self._seconds, start, busy = 0.0, time.perf_counter(), time.process_time()
        step()
        return {
            "wall": time.perf_counter() - start,
            "processor": time.process_time() - busy,
            "wait": self._seconds,
        }

    def _timed_gather(self, *arguments: Any) -> None:
        start = time.perf_counter()
        self._gather(*arguments)
        self._seconds += time.perf_counter() - start


def _direction_seconds(optimizer: zoquant.ZOSGD, count: int = 20) -> float:
    """Return the processor time that adding one direction to all deltas takes, as a replay of many does."""
    steps = [Step((seed,), (1e-3,), (1e-3,)) for seed in range(count)]
    run = replace(optimizer.trajectory, steps=steps)
    start = time.process_time()
    run.deltas(optimizer.views)
    return (time.process_time() - start) / count


if __name__ == "__main__":
    main()
