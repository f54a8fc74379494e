"""Runs of zoquant: trained, exported, and the exported file tested."""

import tempfile
from dataclasses import replace
from pathlib import Path

import zoquant
from benchmarks.gradient.measured import Line, Meter, Run
from benchmarks.gradient.rows import TASKS, to_learn, to_test, write
from zoquant.checkpoint.inspection import inspect
from zoquant.training import Config, Progress, Settings, Source, evaluate, finetune

_BACKWARD = Settings(steps=100, gradient="backward")
WAYS = {
    "forward, 250 forwards": Settings(steps=125),
    "forward, 1,000 forwards": Settings(steps=500),
    "linear probe": Settings(steps=63, gradient="linear-probe"),
    "backward": _BACKWARD,
    "backward, memory of inference": replace(_BACKWARD, checkpoint=True, micro_batches=8),
}
BASE = "as it is"


def untrained(run: Run) -> Line:
    """Test the model as it is."""
    with tempfile.TemporaryDirectory() as folder:
        return _tested(run, run.model, Path(folder))


def train(run: Run) -> Line:
    """Train, and return what came of it."""
    settings = replace(WAYS[run.way], seed=run.seed, steps=run.steps or WAYS[run.way].steps)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = Config(
            run.model, write(to_learn(run.data, run.task, run.seed), folder / "train.jsonl"), TASKS[run.task],
            compute_dtype="float32", device="cpu", settings=settings,
        )  # fmt: skip
        meters: list[Meter] = []

        def told(progress: Progress) -> None:
            meters.extend([] if meters else [Meter()])
            print(progress, flush=True)

        found = finetune(config, folder / "run", on_progress=told)
        took, tuned = meters[0].read(), folder / "tuned.gguf"
        zoquant.export(run.model, delta=folder / "run" / "delta.safetensors", out=tuned)
        before, after = inspect(run.model), inspect(tuned)
        return {
            "steps": found["steps"], "batch": settings.batch_size, "lr": settings.lr,
            **_tested(run, str(tuned), folder), **took, "out_mib": found["delta_bytes"] / 2**20,
            "same_file": all(before[name] == after[name] for name in ("bytes", "types", "views")),
        }  # fmt: skip


def _tested(run: Run, model: str, folder: Path) -> Line:
    source = Source(model, compute_dtype="float32", device="cpu")
    found = evaluate(source, write(to_test(run.data, run.task), folder / "test.jsonl"), TASKS[run.task])
    accuracy = found.metrics["accuracy"]
    return {"accuracy": accuracy.value, "interval": accuracy.interval, "examples": found.examples}
