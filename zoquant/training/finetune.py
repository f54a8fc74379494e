"""A whole fine-tuning job in one call: load, train, save, plot, summarize. Command line and demo stand on it."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from zoquant.checkpoint.loading import Runtime, default_compute_dtype, default_device, load
from zoquant.distributed.launch import folder_of_rank, goes_on, is_first, process_group
from zoquant.errors import CheckpointError, DataError
from zoquant.files.atomic_files import refuse_existing, write_text
from zoquant.files.hub import local_path
from zoquant.registry import format_of
from zoquant.tasks import Evaluation, TaskSettings
from zoquant.tasks.objective import Objective, WithObjective, with_objective
from zoquant.tasks.rewards import Reward
from zoquant.tasks.rows.sha256 import rows_sha256
from zoquant.tasks.splits import Parts, drawn, parts_differ, read_part, read_parts, read_test
from zoquant.training.best import CAUSAL, MASKED
from zoquant.training.card import write_card
from zoquant.training.plot import plot_run
from zoquant.training.run_folder import SHA256, RunFolder
from zoquant.training.settings import Settings
from zoquant.training.trainer import Job, Outcome, Report, run

if TYPE_CHECKING:
    from zoquant.training.config import Config

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Source:
    """A model and how its forward is computed.

    Attributes:
        model: path or name of the checkpoint.
        runtime: who computes the forward.
        compute_dtype: `"auto"`, or the dtype of the matrix products.
        activation_dtype: dtype of what passes between native layers; `"auto"` is float32.
        device: `"auto"`, or where the model goes.
    """

    model: str
    runtime: Runtime = "auto"
    compute_dtype: str = "auto"
    activation_dtype: str = "auto"
    device: str = "auto"

    def resolve(self) -> tuple[torch.device, torch.dtype]:
        """Return the device and the dtype that `"auto"` means here.

        Raises:
            ValueError: the dtype is unknown, or the device is none of this machine.
        """
        device = default_device() if self.device == "auto" else _device(self.device)
        return device, _dtype("compute", self.compute_dtype) or default_compute_dtype(device)

    def resolve_runtime(self) -> Runtime:
        """Return the runtime that `"auto"` means here; on a GPU it is measured at each load and stays `"auto"`.

        Raises:
            ValueError: the dtype is unknown, or the device is none of this machine.
        """
        return "native" if self.runtime == "auto" and self.resolve()[0].type == "cpu" else self.runtime

    def open(self, delta: str | Path | None = None) -> tuple[nn.Module, Any, torch.device]:
        """Load model and tokenizer, with a delta on it if one is given; return them with their device.

        Raises:
            CheckpointError: not a checkpoint, damaged, or without a tokenizer.
            BaseMismatchError: the delta was made on another base.
            ValueError: a dtype is unknown, or one of activations is asked of a vendor's runtime.
        """
        device, dtype = self.resolve()
        activations = _dtype("activation", self.activation_dtype)
        model, tokenizer = load(
            self.model, runtime=self.runtime, compute_dtype=dtype, activation_dtype=activations, device=device,
            delta=delta,
        )  # fmt: skip
        if tokenizer is None:
            raise CheckpointError(f"{self.model}: carries no tokenizer, so text cannot be fed to it.")
        return model, tokenizer, device


def _device(said: str) -> torch.device:
    """Return the device that somebody named.

    Raises:
        ValueError: it is unknown, or a GPU that is not there.
    """
    try:
        device = torch.device(said)
    except RuntimeError as error:
        raise ValueError(f"device is {said!r}, expected auto, cpu, or cuda for a GPU.") from error
    found = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= found:
        raise ValueError(f"device is {said!r}, but torch finds {found} GPUs of that kind here. Take auto or cpu.")
    return device


def _dtype(name: str, said: str) -> torch.dtype | None:
    """Return the dtype that somebody named; None for `"auto"`."""
    if said not in ("auto", *_DTYPES):
        raise ValueError(f"{name} dtype is {said!r}, expected auto or one of {list(_DTYPES)}.")
    return _DTYPES.get(said)


@process_group()
def finetune(
    source: Source,
    data: str | Path,
    task: TaskSettings,
    out: str | Path,
    *,
    settings: Settings,
    eval_data: str | Path | None = None,
    eval_every: int = 0,
    protocol: str | None = None,
    objective: str | Objective = "loss",
    reward: Reward | None = None,
    resume: bool = False,
    report: Report = lambda _: None,
    config: "Config | None" = None,
) -> dict[str, Any]:
    """Fine-tune a checkpoint on a data file and fill a run folder.

    Under torchrun all ranks train together; rank 0 alone evaluates and fills the folder, see docs/distributed.md.

    Args:
        source: the model.
        data: training rows: a file, a folder, or the Hub, as `read_rows` has it.
        task: what is learned from them.
        out: the run folder, new unless `resume`.
        settings: what decides the bytes.
        eval_data: rows to evaluate on, or None.
        eval_every: steps between evaluations; 0 evaluates before and after, with a protocol as often as that says.
        protocol: `"mezo"` to draw the rows as the papers do, by the seed of the run, see `read_parts`, and to test the
            step that does best on the rows for choices, see `zoquant.training.best`.
        objective: what is made smaller: a name of `zoquant.tasks.objective.OBJECTIVES`, or a
            function of model and batch.
        reward: of objective `"reward"`, what scores generations.
        resume: go on in a folder that holds an unfinished run.
        report: called after each step and each evaluation.
        config: all of the above as a config, which is written into the folder, or None.

    Returns:
        What `summary.json` holds.

    Raises:
        ZoquantError: any of its kinds; see `zoquant.errors`.
    """
    if eval_every < 0:
        raise ValueError(f"eval_every is {eval_every}, expected 0 or more steps.")
    out = folder_of_rank(out)
    resume = goes_on(resume, out)
    if not resume:
        refuse_existing(out)
    choice = MASKED if task.kind == "masked" else CAUSAL
    parts = read_parts(task, data, eval_data, protocol, settings.seed)
    model, tokenizer, device = source.open()
    with _naming(data):
        train = task.build(parts.train, model, tokenizer, device)
    with _naming(eval_data or data):
        held_out, test = (
            None if rows is None or not is_first() else task.build(rows, model, tokenizer, device)
            for rows in (parts.dev, parts.test)
        )
    learned = (
        with_objective(train, objective, reward) if isinstance(objective, str) else WithObjective(train, objective)
    )
    job = Job(
        model=model,
        train=learned,
        held_out=held_out,
        settings=settings,
        folder=RunFolder(out),
        identity=_identity(source, data, eval_data, task)
        | _digests(parts)
        | {"protocol": protocol, "objective": _name(objective), "reward": None if reward is None else _name(reward)},
        eval_every=eval_every or (choice.every(settings.steps) if protocol else 0),
        test=test,
        choice=choice,
        config=None if config is None else config.resolved().to_toml(),
    )
    outcome = run(job, resume=resume, report=report)
    summary = _summary(source, outcome) | {"calibration": job.folder.read_calibration()}
    if outcome.test is not None:
        summary |= {"best_step": outcome.best_step, "test": outcome.test.to_dict()}
    write_text(job.folder.summary, json.dumps(summary, indent=1) + "\n")
    plot_run(job.folder)
    write_card(job.folder)
    return summary


def evaluate(
    source: Source,
    data: str | Path,
    task: TaskSettings,
    delta: str | Path | None = None,
    *,
    protocol: str | None = None,
    shots: int = 0,
    shots_from: str | Path | None = None,
    seed: int = 0,
) -> Evaluation:
    """Return how well a checkpoint does on data, with a delta on it if one is given.

    Args:
        source: the model.
        data: rows to measure on: a file, a folder, or the Hub, as `read_rows` has it.
        task: what is measured.
        delta: a delta file, or None.
        protocol: `"mezo"` for the 1,000 test rows of the papers.
        shots: worked examples before every prompt.
        shots_from: rows to draw them from; None for the training split of the same folder.
        seed: of the draws.

    Raises:
        ZoquantError: any of its kinds; see `zoquant.errors`.
    """
    if min(shots, seed) < 0:
        raise ValueError(f"shots is {shots} and seed {seed}, expected 0 or more each.")
    if shots and shots_from is None and not parts_differ(task, data):
        raise DataError(f"shots is {shots}, but {data} has no splits. Name other rows to draw them from: --shots-from.")
    rows = read_test(task, data, protocol, seed)
    examples = drawn(read_part(task, shots_from or data, "train"), seed, shots) if shots else []
    model, tokenizer, device = source.open(delta)
    with _naming(data):
        built = task.build(rows, model, tokenizer, device, shots=examples)
    return built.evaluate(model)


@contextmanager
def _naming(data: str | Path) -> Iterator[None]:
    """Say of which data an error within speaks."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{data}: {error}") from error


def evaluation_summary(found: Evaluation | None) -> dict[str, Any] | None:
    """Return an evaluation as plain data, with the 95 % confidence interval of each metric."""
    return None if found is None else found.to_dict()


def _identity(source: Source, data: str | Path, eval_data: str | Path | None, task: TaskSettings) -> dict[str, Any]:
    device, dtype = source.resolve()
    files: Sequence[str | Path | None] = (source.model, data, eval_data)
    model, train, held_out = (None if file is None else str(file) for file in files)
    return {
        "model": model,
        "data": train,
        "eval_data": held_out,
        **asdict(task),
        "runtime": source.resolve_runtime(),
        "compute_dtype": str(dtype).removeprefix("torch."),
        "activation_dtype": "float32" if source.activation_dtype == "auto" else source.activation_dtype,
        "device": device.type,
    }


def _digests(parts: Parts) -> dict[str, str]:
    """Return the sha256 of the rows of each part that there is, for `--resume` to see that they are the same."""
    held = {"data": parts.train, "eval_data": parts.dev, "test": parts.test}
    return {f"{name}{SHA256}": rows_sha256(rows) for name, rows in held.items() if rows is not None}


def _name(chosen: Any) -> str:
    """Return the name of an objective or a reward, as settings.json has it."""
    return chosen if isinstance(chosen, str) else getattr(chosen, "__qualname__", repr(chosen))


def _summary(source: Source, outcome: Outcome) -> dict[str, Any]:
    device, dtype = source.resolve()
    return {
        "model": source.model,
        "format": format_of(local_path(source.model)).name,
        "device": device.type,
        "compute_dtype": str(dtype).removeprefix("torch."),
        "finished": outcome.finished,
        "views": outcome.views,
        "trainable": outcome.trainable,
        "steps": outcome.steps,
        "skipped": outcome.skipped,
        "eval_before": evaluation_summary(outcome.before),
        "eval_after": evaluation_summary(outcome.after),
        "step_seconds": outcome.step_seconds,
        "forward_seconds": outcome.forward_seconds,
        "overhead": outcome.overhead,
        "rss_loaded_bytes": outcome.rss_loaded_bytes,
        "rss_peak_bytes": outcome.rss_peak_bytes,
        "delta_bytes": outcome.delta_bytes,
        "trajectory_bytes": outcome.trajectory_bytes,
        "export_path": None,
    }
