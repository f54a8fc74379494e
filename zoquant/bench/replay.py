"""How many steps a second a replay does."""

from typing import Any

from zoquant.bench.timing import in_turn, spread
from zoquant.bound import Views
from zoquant.noise import step_seed
from zoquant.optim import ZOSGD
from zoquant.update import Step


def replay_rate(views: Views, steps: int) -> dict[str, Any]:
    """Return how many steps a second a replay does over the views, which it leaves as they were."""
    optimizer = ZOSGD(views, lr=0.0)
    made = [Step((step_seed(0, number),), (1.0,), 1e-9) for number in range(steps)]
    mover = optimizer.trajectory.mover(views)
    (times,) = in_turn({"replay": lambda: mover.advance(made)}, 3).values()
    mover.reset()
    views.write()
    return {"steps": steps, "values": views.trainable, "steps_a_second": spread([steps / s for s in times])}
