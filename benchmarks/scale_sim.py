"""How training scales to 10,000 workers: simulated from measured times, with workers that are slow, lost or far away.

    python -m benchmarks.scale_sim [--measured scale.json] [--out docs/images/scaling.png]

Every worker has one core's speed. Useful work is counted in evaluations of the loss, relative to one worker that never
fails. Weak scaling: more workers evaluate more in a step. Assumptions:

- An evaluation takes `forward` seconds times a lognormal factor of median 1 and shape `spread`, drawn for each.
- Adding one direction to the deltas takes `direction` seconds on every worker.
- A message takes `latency` seconds one way, and its bytes at `bandwidth`.
- A worker is lost at an exponential rate, once in `mtbf` hours, and is back after `restart` seconds.
- In step, data-parallel: a worker evaluates both sides of the one direction on a micro-batch of its own.
- In step, probe-parallel: a worker evaluates both sides of a direction of its own; all add all directions.
- Rows of losses are gathered in a ring, as gloo does: W − 1 messages one after the other; also shown: by doubling,
  log2 W of them. The slowest worker decides. When one is lost all restart, and the step in flight is lost.
- Asynchronous: a worker reads the log, adds what it missed, evaluates two sides, and pushes; two round trips. The store
  serves one request after the other, in `service` seconds. A step is weighted by 1 / (1 + its age), which makes W equal
  workers an average of W directions, as the probes of a step are; it counts as work unless it is older than 4 W. Only
  the worker that is lost pauses.
"""

import argparse
import heapq
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

WORKERS = (1, 2, 4, 10, 30, 100, 300, 1000, 3000, 10000)
OLDEST = 4
STEPS = 300
CYCLES, LEAST = 20, 4000


@dataclass(frozen=True)
class World:
    """What the workers are.

    Attributes:
        forward: seconds of an evaluation.
        direction: seconds of adding a direction to the deltas.
        spread: shape of the lognormal factor of an evaluation.
        latency: seconds of a message one way.
        bandwidth: bytes a second of a link.
        service: seconds that the store takes for a request.
        mtbf: hours between two losses of one worker.
        restart: seconds until a lost worker, or a restarted group, goes on.
    """

    forward: float = 2.4
    direction: float = 0.0012
    spread: float = 0.1
    latency: float = 1e-4
    bandwidth: float = 1e8
    service: float = 2e-5
    mtbf: float = 500.0
    restart: float = 60.0


def in_step(world: World, workers: int, *, probes: bool, doubling: bool, seed: int = 0) -> float:
    """Return the speed-up of workers in step.

    Args:
        world: what they are.
        workers: how many.
        probes: whether each has a direction of its own, or a micro-batch.
        doubling: whether rows are gathered by doubling, or in a ring.
        seed: of the random draws.
    """
    draw = np.random.default_rng(seed)
    row = 8 * (3 + 2) / world.bandwidth
    hops = np.ceil(np.log2(workers)) if doubling else workers - 1
    gather = hops * world.latency + (workers - 1) * row
    added = world.direction * (workers if probes else 1)
    slowest = [_evaluations(draw, world, workers).max() for _ in range(STEPS)]
    step = float(np.mean(slowest)) + gather + added
    losses = workers * step / (3600 * world.mtbf)  # in one step, of any worker
    seconds = step + losses * (world.restart + step / 2)
    return workers * _alone(world) / seconds


def asynchronous(world: World, workers: int, seed: int = 0) -> tuple[float, float]:
    """Return the speed-up of workers that wait for nobody, and the mean age of their steps.

    Args:
        world: what they are.
        workers: how many.
        seed: of the random draws.
    """
    draw = np.random.default_rng(seed)
    events = [(float(time), worker, 0) for worker, time in enumerate(_evaluations(draw, world, workers))]
    heapq.heapify(events)
    count = max(workers * CYCLES, LEAST)
    lost = iter(draw.exponential(3600 * world.mtbf, count))
    length, free, useful, after = 0, 0.0, 0, 0.0
    ages: list[int] = []
    for number, seconds in enumerate(_evaluations(draw, world, count)):
        asked, worker, seen = heapq.heappop(events)
        free = max(asked, free) + 2 * world.service
        age, length = length - seen, length + 1
        busy = seconds + (age + 1) * world.direction
        pause = world.restart if next(lost) < busy else 0.0
        heapq.heappush(events, (free + 4 * world.latency + busy + pause, worker, length))
        if number >= count // 2:  # the first half lets the workers get out of step
            useful, after = useful + (age <= OLDEST * workers), after or free
            ages.append(age)
    return useful * _alone(world) / (free - after), float(np.mean(ages))


def _evaluations(draw: np.random.Generator, world: World, count: int) -> np.ndarray:
    """Return the time that both sides of a direction take, for some workers."""
    return world.forward * np.exp(world.spread * draw.standard_normal((count, 2))).sum(1)


def _alone(world: World) -> float:
    """Return the time of a step of one worker that never fails."""
    return 2 * world.forward * float(np.exp(world.spread**2 / 2)) + world.direction


def simulate(world: World) -> dict[str, list[float]]:
    """Return the speed-up of each way for each number of workers, and the mean age."""
    pairs = [asynchronous(world, count) for count in WORKERS]
    return {
        "data-parallel, ring": [in_step(world, count, probes=False, doubling=False) for count in WORKERS],
        "data-parallel, doubling": [in_step(world, count, probes=False, doubling=True) for count in WORKERS],
        "probe-parallel, doubling": [in_step(world, count, probes=True, doubling=True) for count in WORKERS],
        "asynchronous": [speed for speed, _ in pairs],
        "mean age": [age for _, age in pairs],
    }


def draw(worlds: dict[str, World], found: dict[str, dict[str, list[float]]], out: Path) -> None:
    """Draw a panel for each world."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    for axes, (name, world) in zip(figure.subplots(1, len(worlds), sharey=True), worlds.items(), strict=True):
        axes.plot(WORKERS, WORKERS, color="0.7", linestyle="--", label="ideal")
        for way, speeds in found[name].items():
            if way != "mean age":
                axes.plot(WORKERS, speeds, "o-", markersize=3, label=way)
        axes.set(xscale="log", yscale="log", xlabel="workers", title=f"{name}: {1e3 * world.latency:g} ms one way")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("useful evaluations, relative to one worker")
    figure.axes[0].legend()
    world = next(iter(worlds.values()))
    figure.suptitle(
        f"Simulated: evaluation {world.forward:.3g} s (spread {world.spread:g}), a direction "
        f"{1e3 * world.direction:.2g} ms, a loss of each worker every {world.mtbf:g} h, {world.restart:g} s to restart",
        fontsize=9,
    )
    FigureCanvasAgg(figure).print_png(out)


def main() -> None:
    """Simulate, print and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--measured", type=Path, help="JSON with forward_seconds and direction_seconds")
    parser.add_argument("--out", type=Path, default=Path("docs/images/scaling.png"))
    for name in ("spread", "mtbf", "restart", "service"):
        parser.add_argument(f"--{name}", type=float, default=getattr(World, name))
    chosen = parser.parse_args()
    world = World(spread=chosen.spread, mtbf=chosen.mtbf, restart=chosen.restart, service=chosen.service)
    if chosen.measured is not None:
        times = json.loads(chosen.measured.read_text())
        world = replace(world, forward=times["forward_seconds"], direction=times["direction_seconds"])
    worlds = {"one room": world, "the internet": replace(world, latency=0.05, bandwidth=1e6)}
    found = {name: simulate(each) for name, each in worlds.items()}
    draw(worlds, found, chosen.out)
    print(
        json.dumps({"workers": WORKERS, "worlds": {n: vars(w) for n, w in worlds.items()}, "speed_up": found}, indent=1)
    )


if __name__ == "__main__":
    main()
