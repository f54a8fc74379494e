"""The command that turns a trajectory into its delta."""

from pathlib import Path
from typing import Annotated

import typer

from zoquant.cli.show import JSON, mebibytes, show_json, show_pairs


def replay_command(
    base: Annotated[Path, typer.Argument(help="The checkpoint that the training started from.")],
    trajectory: Annotated[Path, typer.Argument(help="What the training saved: a trajectory, or a run's folder.")],
    out: Annotated[Path, typer.Option(help="The delta to write; must not exist.")],
    steps: Annotated[int | None, typer.Option(help="Stop after so many steps: the model as it was then.")] = None,
    json: JSON = False,
) -> None:
    """Turn a trajectory into its delta without a single forward pass.

    Example: `zoquant replay model.gguf run/trajectory.safetensors --out delta.safetensors --steps 200`
    """
    from zoquant.checkpoint.replay_views import recorded_views
    from zoquant.cli.progress import waiting
    from zoquant.files.atomic_files import refuse_place
    from zoquant.files.hub import refuse_text
    from zoquant.record.delta import save_delta
    from zoquant.record.replay import replay
    from zoquant.record.trajectory import Trajectory
    from zoquant.training.run_folder import RunFolder

    refuse_place(out)
    refuse_text(trajectory, "trajectory", "trajectory.safetensors")
    recorded = Trajectory.load(RunFolder(trajectory).recorded if trajectory.is_dir() else trajectory)
    if steps is not None and steps > len(recorded.steps):
        raise ValueError(f"--steps is {steps}, but {trajectory} holds {len(recorded.steps)}. Leave it out to do all.")
    with waiting(f"replaying {trajectory}", silent=json):
        views = recorded_views(base, recorded)
        done = len(replay(recorded, views, steps=steps))
        save_delta(out, views)
    result = {"delta": str(out), "steps": done, "bytes": out.stat().st_size}
    if json:
        show_json(result)
        return
    show_pairs("Replayed", {"delta": out, "steps": done, "size": mebibytes(out.stat().st_size)})
