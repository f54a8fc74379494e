"""How many steps a second a replay does."""

from typing import Any

from zoquant.cli.bench.timing import in_turn, spread
from zoquant.kernels.noise.definition import step_seed
from zoquant.optim.optimizer import ZOSGD
from zoquant.record.step import Step
from zoquant.views.model_views import Views


def replay_rate(views: Views, steps: int) -> dict[str, Any]:
    """Return how many steps a second a replay does over the views, which it leaves as they were."""
    optimizer = ZOSGD(views, lr=0.0)
    made = [Step((step_seed(0, number),), (1.0,), (1e-9,)) for number in range(steps)]
    (mover,) = optimizer.trajectory.movers([views])
    (times,) = in_turn({"replay": lambda: mover.advance(made)}, 3).values()
    mover.reset()
    views.write()
    return {"steps": steps, "values": views.trainable, "steps_a_second": spread([steps / s for s in times])}
