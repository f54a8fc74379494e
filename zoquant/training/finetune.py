"""A whole fine-tuning job in one call: read, load, train, save, summarize. Command line and demo stand on it."""

import json
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed as dist

from zoquant.checkpoint.inspection import list_keys
from zoquant.distributed.launch import folder_of_rank, from_first, goes_on, is_first, process_group
from zoquant.errors import ConfigError, DataError
from zoquant.files.atomic_files import write_text
from zoquant.files.hub import local_path
from zoquant.registry import format_of
from zoquant.tasks.kinds.classification import Classification
from zoquant.tasks.objective import Objective, WithObjective, check_objective, with_objective
from zoquant.tasks.rewards import OutsideReward, Reward
from zoquant.tasks.rows import Row, RowsInMemory
from zoquant.tasks.rows.naming import naming
from zoquant.tasks.rows.sha256 import rows_sha256
from zoquant.tasks.splits import Parts, read_parts
from zoquant.tasks.task import Task
from zoquant.training.backward.steps import NO_GRADIENT
from zoquant.training.best_step import CAUSAL, MASKED, BestStep
from zoquant.training.card import write_card
from zoquant.training.config import Config
from zoquant.training.job import Job
from zoquant.training.memory.plan import BOUNDED, Plan
from zoquant.training.memory.resident import peak_bytes
from zoquant.training.memory.ways import Way
from zoquant.training.moving import CHOSEN, check_rows_columns
from zoquant.training.outcome import Outcome
from zoquant.training.phases import run_both
from zoquant.training.progress import OnProgress, Progress
from zoquant.training.run_folder import SHA256, RunFolder
from zoquant.training.settings import AUTO
from zoquant.training.source import Opened
from zoquant.training.trainer import run

log = logging.getLogger("zoquant")

_EVALUATIONS = 10
"""How often a run is evaluated if nothing is said."""
_LABELS_TOLD = 5
"""How many labels of the data are named."""


@process_group()
def finetune(
    config: Config,
    out: str | Path,
    *,
    objective: Objective | None = None,
    reward: Reward | None = None,
    rows: Mapping[str, RowsInMemory] = MappingProxyType({}),
    opened: Opened | None = None,
    resume: bool = False,
    on_progress: OnProgress = lambda _: None,
) -> dict[str, Any]:
    """Fine-tune a checkpoint on rows of data and fill a run folder.

    Under torchrun all ranks train together; rank 0 alone evaluates and fills the folder: see docs/how-to.

    Args:
        config: the run: model, data, task, settings. With a protocol, the step that does best on the rows for choices
            is tested, see `zoquant.training.best_step`.
        out: the run folder, new unless `resume`.
        objective: a function to make smaller in place of the config's objective. No config file can say it, so the
            folder gets none.
        reward: a function that scores generations in place of the config's reward; the same holds.
        rows: rows in place of `data` or `eval_data` of the config, by its name; the same holds.
        opened: a model in place of the config's, its tokenizer, and its device; the same holds.
        resume: go on in a folder that holds an unfinished run.
        on_progress: called after each step and each evaluation.

    Returns:
        What `summary.json` holds.

    Raises:
        ConfigError: a file is not the one that the config's `sha256` names.
        ZoquantError: any of its kinds; see `zoquant.errors`.
    """
    folder = RunFolder(folder_of_rank(out))
    resume = goes_on(resume, folder.path)
    if not resume:
        folder.refuse_existing()
    in_memory = opened is not None
    made = config.resolved(opened=in_memory)
    data, eval_data = rows.get("data", made.data), rows.get("eval_data", made.eval_data)
    parts = read_parts(made.asked, data, eval_data, made.protocol, made.settings.seed)
    said = all(each is None for each in (objective, reward, opened)) and not rows
    chosen = objective or made.objective
    if reward is None and made.reward is not None:
        reward = OutsideReward(made.reward, made.reward_timeout)
    _check(made, chosen, reward)
    identity = _identity(made, parts, chosen, reward)
    if resume:
        later = (*(CHOSEN if made.settings.subspace == AUTO else ()), *(BOUNDED if made.memory else ()))
        folder.check(asdict(made.settings) | identity, later)
        folder.evaluations()  # refuses damaged ones
    if opened is None:
        _name_patterns(made)
        on_progress(Progress(0, made.settings.steps, doing=f"loading {made.model}"))
        opened = config.source.open()
    job = replace(_job(made, parts, opened, folder, chosen, reward), identity=identity, config=made if said else None)
    outcome, way = _done(job, made.memory, opened[2], resume, on_progress)
    summary = {
        "model": made.model,
        "format": "in memory" if in_memory else format_of(local_path(made.model)).name,
        "device": torch.device(made.device).type,
        "compute_dtype": made.compute_dtype,
        **outcome.to_dict(),
        "memory_estimate_bytes": None if way is None else way.bytes,
        "memory_peak_bytes": peak_bytes(opened[2]),
        "export_path": None,
        "calibration": folder.read_calibration(),
    }
    write_text(folder.summary, json.dumps(summary, indent=1) + "\n")
    write_card(folder)
    return summary


def _check(config: Config, objective: str | Objective, reward: Reward | None) -> None:
    """Refuse what cannot be learned so, before the model is loaded."""
    if isinstance(objective, str):
        check_objective(config.asked.kind, objective, reward)
    if config.settings.gradient == "backward" and objective != "loss" and not config.settings.forward_steps:
        raise DataError(NO_GRADIENT)
    if config.settings.gradient == "linear-probe":
        _check_linear_probe(config, objective)
    if config.settings.subspace == "rows-columns":
        per_example = objective == "loss" and config.asked.kind == "classification"
        check_rows_columns(per_example, f"task {config.asked.task} with objective {_name(objective)}")


def _check_linear_probe(config: Config, objective: str | Objective) -> None:
    """Refuse a linear probe of what is no choice among label words."""
    if config.asked.kind != "classification" or objective != "loss":
        raise DataError(
            f"gradient is linear-probe, which fits the loss of label words, not task {config.asked.task} with "
            f"objective {_name(objective)}. Take gradient forward."
        )
    if config.memory is not None:
        raise ConfigError("a linear probe takes what an evaluation takes. Leave memory out.", "memory")
    if dist.is_available() and dist.is_initialized():
        raise ValueError("gradient is linear-probe, which is for one process, and several share this run.")


def _name_patterns(config: Config) -> None:
    """Warn of a pattern that matches no key of the checkpoint: others may, so that the run would not show it."""
    given = {name: getattr(config.settings, name) or () for name in ("include", "exclude")}
    keys = [each["key"] for each in list_keys(config.model)] if is_first() and any(given.values()) else []
    for name, patterns in given.items():
        for pattern in patterns if keys else ():
            if not any(fnmatchcase(key, pattern) for key in keys):
                log.warning(
                    "%s %s matches no key of %s, where keys are such as %s. `zoquant inspect --keys` lists all.",
                    name, pattern, config.model, keys[0],
                )  # fmt: skip


def _job(
    config: Config, parts: Parts, opened: Opened, folder: RunFolder, objective: str | Objective, reward: Reward | None
) -> Job:
    """Make the tasks of the rows for the model that was opened."""

    def built(rows: list[Row], data: str) -> Task[Any]:
        with naming(data):
            return config.asked.build(rows, *opened, balanced=config.batches == "balanced")

    train = built(parts.train, config.data)
    if isinstance(objective, str):
        learned = with_objective(train, objective, reward)
    else:
        learned = WithObjective(train, objective)
    held_out, test = (
        None if rows is None or not is_first() else built(rows, config.eval_data or config.data)
        for rows in (parts.dev, parts.test)
    )
    best = MASKED if config.asked.kind == "masked" else CAUSAL
    return Job(
        model=opened[0],
        train=learned,
        held_out=held_out,
        settings=config.settings,
        folder=folder,
        eval_every=_eval_every(config, best, parts.dev),
        test=test,
        best=best,
        notices=(_batches_told(config, parts.train), *_probe_told(config, train)),
    )


def _eval_every(config: Config, best: BestStep, held_out: Sequence[Row] | None) -> int:
    """Return the steps between two evaluations: as given, as the protocol has it, or so that they cost little."""
    if config.eval_every is not None or held_out is None or config.settings.gradient == "linear-probe":
        return config.eval_every or 0
    steps = config.settings.steps
    if config.protocol:
        return best.every(steps)
    seen = steps * config.settings.batch_size * (1 if config.settings.gradient == "backward" else 2)
    return max(1, math.ceil(steps / min(_EVALUATIONS, max(1, seen // (2 * len(held_out))))))


def _done(
    job: Job, memory: str | None, device: torch.device, resume: bool, on_progress: OnProgress
) -> tuple[Outcome, Way | None]:
    """Do a job as memory allows, and the forwards that follow if some do; return what they took it to take as well."""
    learned, both = job.train, job.settings.forward_steps > 0
    if both and isinstance(learned, WithObjective):
        job = replace(job, train=learned.task)
    begun = from_first(job.folder.read_settings() if resume and is_first() else None)
    plan = Plan.make(job.model, job.train, job.settings, device, memory, begun)
    config = None if job.config is None else replace(job.config, memory=None)
    job = replace(job, settings=plan.settings, notices=(*job.notices, *plan.notices), config=config)
    if not both:
        return run(job, resume=resume, on_progress=on_progress), plan.way
    then = _following(job, learned)
    return run_both(replace(job, test=None), then, resume=resume, on_progress=on_progress), plan.way


def _following(job: Job, learned: Task[Any]) -> Job:
    """Return the forwards that follow a run by backwards, on what it is there for."""
    folder = RunFolder(job.folder.forward)
    return replace(job, train=learned, settings=job.settings.following(), folder=folder, config=None, notices=())


def _batches_told(config: Config, rows: list[Row]) -> str:
    """Return what the batches of a run are drawn of, for people."""
    if config.settings.gradient == "linear-probe":
        return "rows: as they are, each once."
    if not config.asked.has_labels:
        return "batches: shuffled rows."
    counts = Counter(str(row.get(config.asked.label)) for row in config.asked.rows(rows))
    held = ", ".join(f"{label} {count / counts.total():.1%}" for label, count in counts.most_common(_LABELS_TOLD))
    more = ", ..." if len(counts) > _LABELS_TOLD else ""
    if config.batches == "balanced":
        return (
            f"batches: balanced, an equal share of each label, whatever the rows hold ({held}{more}). --batches "
            "shuffled takes rows as they are."
        )
    return f"batches: shuffled rows as they are ({held}{more}). --batches balanced takes an equal share of each label."


def _probe_told(config: Config, train: Task[Any]) -> tuple[str, ...]:
    """Return that a linear probe would do, where it would: it sees each row once."""
    if config.settings.gradient == "forward" and isinstance(train, Classification) and train.single:
        return (f"A linear probe would work here, too: one forward of each of {len(train):,} rows, see --gradient.",)
    return ()


def _identity(config: Config, parts: Parts, objective: str | Objective, reward: Reward | None) -> dict[str, Any]:
    """Return what must be the same to resume, beside the settings."""
    held = {"data": parts.train, "eval_data": parts.dev, "test": parts.test}
    return {
        "model": config.model,
        "data": config.data,
        "eval_data": config.eval_data,
        **asdict(config.asked),
        "runtime": config.runtime,
        "compute_dtype": config.compute_dtype,
        "activation_dtype": "float32" if config.activation_dtype == "auto" else config.activation_dtype,
        "device": torch.device(config.device).type,
        **{f"{name}{SHA256}": rows_sha256(rows) for name, rows in held.items() if rows is not None},
        "protocol": config.protocol,
        "batches": config.batches,
        "objective": _name(objective),
        "reward": None if reward is None else _name(reward),
    }


def _name(chosen: Any) -> str:
    """Return the name of an objective or a reward, as settings.json has it."""
    return chosen if isinstance(chosen, str) else getattr(chosen, "__qualname__", repr(chosen))
