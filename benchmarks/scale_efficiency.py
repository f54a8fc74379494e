"""What a second process brings: two ranks of one thread each, on two cores, against one process of one thread.

    python -m benchmarks.scale_efficiency [checkpoint] [--steps 5] [--rounds 3] [--out scale.json]

The ranks share out the two sides of a direction. Rounds of one and of two processes take turns; a round is the median
of its steps, and a figure the median of its rounds. Efficiency is the time of one over twice the time of two. That both
come to the same bytes is checked. The load average is noted, since others on the machine slow two processes more: the
efficiency by processor time, of one over that of two together, leaves them out, and what the two wait for each other.
Seconds of a forward and of adding a direction are processor time as well.
"""

import argparse
import json
import os
import socket
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import zoquant
from zoquant.demo import checkpoint
from zoquant.distributed import DistributedZO
from zoquant.distributed.agreement import checksum
from zoquant.update import Step

ROWS, TOKENS = 8, 64


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoint", nargs="?", default=None)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=None)
    chosen = parser.parse_args()
    path = chosen.checkpoint or str(checkpoint())
    before = os.getloadavg()
    rounds = [{world: measure(path, world, chosen.steps) for world in (1, 2)} for _ in range(chosen.rounds)]
    found = summary(rounds) | {"load_average": [before[0], os.getloadavg()[0]], "machine": socket.gethostname()}
    text = json.dumps(found, indent=1)
    print(text)
    if chosen.out is not None:
        chosen.out.write_text(text + "\n")


def summary(rounds: list[dict[int, dict[str, Any]]]) -> dict[str, Any]:
    """Return the medians of some rounds.

    Raises:
        RuntimeError: one and two processes did not come to the same bytes.
    """
    sums = {each["checksum"] for found in rounds for each in found.values()}
    if len(sums) != 1:
        raise RuntimeError(f"the rounds ended with the checksums {sorted(sums)}, expected one: the bytes differ.")
    one, two = (statistics.median(found[world]["step"] for found in rounds) for world in (1, 2))
    busy, together = (statistics.median(found[world]["processor"] for found in rounds) for world in (1, 2))
    return {
        "step_seconds_1": one,
        "step_seconds_2": two,
        "efficiency": one / (2 * two),
        "efficiency_by_processor_time": busy / together,
        "efficiency_by_round": [found[1]["step"] / (2 * found[2]["step"]) for found in rounds],
        "forward_seconds": statistics.median(found[1]["forward"] for found in rounds),
        "direction_seconds": statistics.median(found[1]["direction"] for found in rounds),
        "bytes_a_step": rounds[0][2]["bytes"],
    }


def measure(path: str, world: int, steps: int) -> dict[str, Any]:
    """Return what rank 0 of so many processes saw."""
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_rank, (world, path, steps, folder), nprocs=world, start_method="spawn")
        found: list[dict[str, Any]] = [json.loads((Path(folder) / f"{n}.json").read_text()) for n in range(world)]
    return found[0] | {"processor": sum(each["processor"] for each in found)}


def _rank(rank: int, world: int, path: str, steps: int, folder: str) -> None:
    torch.set_num_threads(1)
    model, _ = zoquant.load(path, compute_dtype=torch.float32, device="cpu")
    optimizer = zoquant.ZOSGD(zoquant.attach(model), lr=1e-3, eps=1e-2)
    stepper: zoquant.ZOSGD | DistributedZO = optimizer
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=world)
        stepper = DistributedZO(optimizer)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.vocab_size, (ROWS, TOKENS), generator=generator)
    forwards: list[float] = []

    def loss() -> float:
        start = time.process_time()
        value = float(model(input_ids=ids, labels=ids).loss)
        forwards.append(time.process_time() - start)
        return value

    times, processor = [], []
    for _ in range(steps + 1):
        start, busy = time.perf_counter(), time.process_time()
        stepper.step(loss)
        times.append(time.perf_counter() - start)
        processor.append(time.process_time() - busy)
    found = {
        "step": statistics.median(times[1:]),
        "processor": statistics.median(processor[1:]),
        "forward": statistics.median(forwards[2 // world :]),
        "bytes": stepper.bytes_a_step() if isinstance(stepper, DistributedZO) else 0,
        "checksum": checksum([buffer.delta for buffer in optimizer.views.buffers]),
        "direction": _direction_seconds(optimizer),
    }
    (Path(folder) / f"{rank}.json").write_text(json.dumps(found))
    if world > 1:
        dist.destroy_process_group()


def _direction_seconds(optimizer: zoquant.ZOSGD, count: int = 20) -> float:
    """Return the processor time that adding one direction to all deltas takes, as a replay of many does."""
    deltas = [torch.zeros_like(buffer.delta) for buffer in optimizer.views.buffers]
    steps = [Step((seed,), (1e-3,), 1e-3) for seed in range(count)]
    start = time.process_time()
    optimizer.trajectory.mover(optimizer.views, deltas).advance(steps)
    return (time.process_time() - start) / count


if __name__ == "__main__":
    main()
