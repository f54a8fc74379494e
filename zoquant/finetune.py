"""A whole fine-tuning job in one call: load, train, save, plot, summarize. Command line and demo stand on it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoquant.attach import attach
from zoquant.delta import load_delta
from zoquant.errors import CheckpointError
from zoquant.files import refuse_existing, write_text
from zoquant.hub import local_path
from zoquant.load import Runtime, default_compute_dtype, default_device, load
from zoquant.plot import plot_run
from zoquant.protocol import ROLES
from zoquant.registry import format_of
from zoquant.rows import read_rows
from zoquant.run_folder import RunFolder
from zoquant.settings import Settings
from zoquant.tasks import Classification, Evaluation, Template
from zoquant.trainer import Job, Outcome, Report, run

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Source:
    """A model and how its forward is computed.

    Attributes:
        model: path or name of the checkpoint.
        runtime: who computes the forward.
        compute_dtype: `"auto"`, or the dtype of the matrix products.
        device: `"auto"`, or where the model goes.
    """

    model: str
    runtime: Runtime = "auto"
    compute_dtype: str = "auto"
    device: str = "auto"

    def resolve(self) -> tuple[torch.device, torch.dtype]:
        """Return the device and the dtype that `"auto"` means here.

        Raises:
            ValueError: the dtype is unknown.
        """
        device = default_device() if self.device == "auto" else torch.device(self.device)
        if self.compute_dtype == "auto":
            return device, default_compute_dtype(device)
        if self.compute_dtype not in _DTYPES:
            raise ValueError(f"compute dtype is {self.compute_dtype!r}, expected auto or one of {list(_DTYPES)}.")
        return device, _DTYPES[self.compute_dtype]

    def open(self) -> tuple[nn.Module, Any, torch.device]:
        """Load model and tokenizer; return them with their device.

        Raises:
            CheckpointError: not a checkpoint, damaged, or without a tokenizer.
        """
        device, dtype = self.resolve()
        model, tokenizer = load(self.model, runtime=self.runtime, compute_dtype=dtype, device=device)
        if tokenizer is None:
            raise CheckpointError(f"{self.model}: carries no tokenizer, so text cannot be fed to it.")
        return model, tokenizer, device


def finetune(
    source: Source,
    data: str | Path,
    template: Template,
    out: str | Path,
    *,
    settings: Settings,
    eval_data: str | Path | None = None,
    eval_every: int = 0,
    resume: bool = False,
    report: Report = lambda _: None,
) -> dict[str, Any]:
    """Fine-tune a checkpoint on a data file and fill a run folder.

    Args:
        source: the model.
        data: training rows.
        template: prompt and label words.
        out: the run folder, new unless `resume`.
        settings: what decides the bytes.
        eval_data: rows to evaluate on, or None.
        eval_every: steps between evaluations; 0 evaluates before and after.
        resume: go on in a folder that holds an unfinished run.
        report: called after each step and each evaluation.

    Returns:
        What `summary.json` holds.

    Raises:
        ZoquantError: any of its kinds; see `zoquant.errors`.
    """
    if not resume:
        refuse_existing(Path(out))
    train_rows = read_rows(data)
    eval_rows = None if eval_data is None else read_rows(eval_data)
    model, tokenizer, device = source.open()
    job = Job(
        model=model,
        train=Classification(train_rows, template, tokenizer, device),
        held_out=None if eval_rows is None else Classification(eval_rows, template, tokenizer, device),
        settings=settings,
        folder=RunFolder(out),
        identity=_identity(source, data, eval_data, template),
        eval_every=eval_every,
    )
    outcome = run(job, resume=resume, report=report)
    summary = _summary(source, outcome) | {"calibration": job.folder.read_calibration()}
    write_text(job.folder.summary, json.dumps(summary, indent=1) + "\n")
    plot_run(job.folder)
    return summary


def evaluate(source: Source, data: str | Path, template: Template, delta: str | Path | None = None) -> Evaluation:
    """Return how well a checkpoint does on a data file, with a delta on it if one is given.

    Raises:
        ZoquantError: any of its kinds; see `zoquant.errors`.
    """
    rows = read_rows(data)
    model, tokenizer, device = source.open()
    if delta is not None:
        load_delta(delta, attach(model, roles=ROLES, coupled=False))
    return Classification(rows, template, tokenizer, device).evaluate(model)


def evaluation_summary(found: Evaluation | None) -> dict[str, Any] | None:
    """Return an evaluation as plain data, with the 95 % confidence interval of each metric."""
    return None if found is None else found.to_dict()


def _identity(source: Source, data: str | Path, eval_data: str | Path | None, template: Template) -> dict[str, Any]:
    device, dtype = source.resolve()
    files: Sequence[str | Path | None] = (source.model, data, eval_data)
    model, train, held_out = (None if file is None else str(file) for file in files)
    return {
        "model": model,
        "data": train,
        "eval_data": held_out,
        "template": template.text,
        "labels": dict(template.words),
        "compute_dtype": str(dtype).removeprefix("torch."),
        "device": device.type,
    }


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
