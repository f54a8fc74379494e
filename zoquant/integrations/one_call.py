"""A run as one call, for notebooks and scripts: what `zoquant train` and `zoquant eval` do, to the same bytes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, wraps
from inspect import signature
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoquant import training
from zoquant.checkpoint.exporting import export
from zoquant.distributed.launch import is_first
from zoquant.errors import CheckpointError
from zoquant.report import write_report
from zoquant.tasks import Evaluation
from zoquant.tasks.objective import Objective
from zoquant.tasks.rewards import Generated, Reward
from zoquant.tasks.rows import RowsInMemory
from zoquant.training import Config, OnProgress, Progress, RunFolder
from zoquant.training.source import Opened, OpenedSource


@dataclass(frozen=True)
class Run:
    """A run that has ended.

    Attributes:
        folder: its folder, which is what one shares.
        summary: what `summary.json` holds.
        config: what was asked for, with all defaults.
        loaded: the model that was trained where it was passed loaded; else None.
    """

    folder: Path
    summary: Mapping[str, Any]
    config: Config
    loaded: nn.Module | None = None

    @property
    def before(self) -> Evaluation | None:
        """How well the base does on the held-out rows; None where there are none."""
        return _evaluation(self.summary, "eval_before")

    @property
    def evaluation(self) -> Evaluation | None:
        """How well the delta does: on the rows to test on if there are any, else on the held-out rows, if any."""
        return _evaluation(self.summary, "test") or _evaluation(self.summary, "eval_after")

    @property
    def delta(self) -> Path:
        """The file of what training added: for `zoquant.load`, `zoquant.export`, `zoquant.load_delta`."""
        return RunFolder(self.folder).delta

    @property
    def best(self) -> Path:
        """The delta that was measured best on held-out rows: of an earlier step than the last, where one did better."""
        folder = RunFolder(self.folder)
        return folder.best if "better" in self.summary else folder.delta

    @cached_property
    def model(self) -> nn.Module:
        """The tuned model, loaded at first use; one that was passed loaded is itself, as the last step left it."""
        return self.config.source.open(self.delta)[0] if self.loaded is None else self.loaded

    def export(self, out: str | Path, *, base: str | Path | None = None) -> Path:
        """Write the tuned checkpoint, in the format of the base; see `zoquant.export`.

        Args:
            out: the new checkpoint, which must not exist.
            base: the checkpoint; None takes the one that was trained, which must be given of a model passed loaded.

        Raises:
            CheckpointError: the base is not known.
        """
        if base is None and self.loaded is not None:
            raise CheckpointError("export: the model was passed loaded, so its files are not known. Give base=.")
        return export(base or self.config.model, delta=self.delta, out=out)

    def report(self, out: str | Path | None = None) -> Path:
        """Write the page of the run anew, into its folder if no other place is named, and return its path."""
        return write_report([self.folder], out)


def finetune(
    model: str | Path | nn.Module,
    *,
    data: Any,
    out: str | Path,
    eval_data: Any = None,
    tokenizer: Any = None,
    objective: str | Objective = "loss",
    reward: str | Reward | Callable[..., Any] | None = None,
    resume: bool = False,
    on_progress: OnProgress | None = None,
    **settings: Any,
) -> Run:
    """Fine-tune a checkpoint or a loaded model on rows of data, as `zoquant train` does with the same settings.

    Args:
        model: a path, a name on the Hugging Face Hub, or a model that `zoquant.attach` takes.
        data: a path or a name as of `--data`, a list of dicts, a `datasets.Dataset`, or a `pandas.DataFrame`.
        out: the folder of the run; new unless `resume`.
        eval_data: rows to evaluate on before and after, likewise.
        tokenizer: that of a loaded model.
        objective: a name as of `--objective`, or a function of model and batch that returns a number to make smaller.
        reward: a command or URL as of `--reward`; a function of `Generated` texts that returns their mean reward; or
            one as in TRL, of `prompts`, `completions` and columns, that returns a reward for each.
        resume: go on with the run in `out`.
        on_progress: called after each step and each evaluation; None shows a bar with the loss.
        settings: any key of the config, which is any flag of `zoquant train` with `_` for `-`: template, labels, task,
            steps, gradient, ... A config file is written where all of it can stand in one.

    Returns:
        The run.

    Raises:
        ConfigError: a setting is unknown, or of another type.
        DataError: data and settings do not fit together.
        ZoquantError: any other of its kinds; see `zoquant.errors`.
    """
    opened = None if isinstance(model, str | Path) else _opened(model, tokenizer)
    rows = {name: RowsInMemory(held) for name, held in (("data", data), ("eval_data", eval_data)) if _in_memory(held)}
    said = {"data": data, "eval_data": eval_data, "objective": objective, "reward": reward}
    if callable(reward) and objective == "loss":
        said["objective"] = "reward"
    values = _model_of(model, opened) | settings
    values |= {name: str(value) for name, value in (said | rows).items() if value is not None and not callable(value)}
    config = Config.of({name: value for name, value in values.items() if value is not None})
    with _bar(config.settings.steps) if on_progress is None else nullcontext(on_progress) as shown:
        summary = training.finetune(
            config, out, objective=objective if callable(objective) else None,
            reward=reward_of(reward) if callable(reward) else None, rows=rows, opened=opened, resume=resume,
            on_progress=shown,
        )  # fmt: skip
    if is_first():
        write_report([out])
    return Run(Path(out), summary, config, None if opened is None else opened[0])


def evaluate(
    model: str | Path | nn.Module,
    *,
    data: Any,
    tokenizer: Any = None,
    delta: str | Path | None = None,
    shots: int = 0,
    shots_from: Any = None,
    seed: int = 0,
    **settings: Any,
) -> Evaluation:
    """Return how well a checkpoint or a loaded model does on rows, as `zoquant eval` does with the same settings.

    Args:
        model: as of `finetune`.
        data: as of `finetune`.
        tokenizer: that of a loaded model.
        delta: what training saved: a delta, a run's folder, or `owner/name`; of a model by its path alone.
        shots: worked examples before every prompt.
        shots_from: rows to draw them from; None takes the training split of `data`.
        seed: of the draws.
        settings: keys of the config that say what the task is and how the model is computed.

    Raises:
        ConfigError: a setting is unknown, or of another type.
        ZoquantError: any other of its kinds; see `zoquant.errors`.
    """
    opened = None if isinstance(model, str | Path) else _opened(model, tokenizer)
    config = Config.of(_model_of(model, opened) | {"data": str(_source(data))} | settings)
    source = config.source if opened is None else OpenedSource(opened)
    return training.evaluate(
        source, _source(data), config.asked, delta, protocol=config.protocol, shots=shots,
        shots_from=None if shots_from is None else _source(shots_from), seed=seed,
    )  # fmt: skip


def reward_of(found: Callable[..., Any]) -> Reward:
    """Return a reward of batches; one as in TRL, which takes `completions`, is given prompts and columns by name."""
    if "completions" not in signature(found).parameters:
        return found

    @wraps(found)
    def mean(generations: Sequence[Generated]) -> float:
        columns = {name: [each.row.get(name) for each in generations] for name in generations[0].row}
        given = columns | {
            "prompts": [each.prompt for each in generations],
            "completions": [each.text for each in generations],
        }
        scores = found(**given)
        return sum(map(float, scores)) / len(generations)

    return mean


@contextmanager
def _bar(steps: int) -> Iterator[OnProgress]:
    """Show steps done, the loss, and what evaluations say, in a terminal or a notebook."""
    from tqdm.auto import tqdm

    with tqdm(total=steps, unit="step", disable=not is_first()) as bar:

        def show(progress: Progress) -> None:
            if progress.result is not None:
                bar.set_postfix_str(f"loss {progress.result.loss:.3f}", refresh=False)
            if (found := progress.evaluation) is not None and is_first():
                bar.write(f"step {progress.step}: held-out {found.primary} {found.score.value:.4g}")
            bar.update(progress.step - bar.n)

        yield show


def _source(data: Any) -> str | Path | RowsInMemory:
    return RowsInMemory(data) if _in_memory(data) else data


def _in_memory(data: Any) -> bool:
    return data is not None and not isinstance(data, str | Path)


def _opened(model: nn.Module, tokenizer: Any) -> Opened:
    if tokenizer is None:
        raise CheckpointError("a loaded model needs its tokenizer, to be fed with text. Give tokenizer=.")
    return model.eval(), tokenizer, _tensor(model).device


def _tensor(model: nn.Module) -> torch.Tensor:
    return next(chain(model.parameters(), model.buffers()), torch.empty(0))


def _model_of(model: str | Path | nn.Module, opened: Opened | None) -> dict[str, Any]:
    """Return what the config says of a model; of a loaded one its class, its device, and the dtype of its products."""
    if opened is None:
        return {"model": str(model)}
    found = next((each.compute_dtype for each in opened[0].modules() if hasattr(each, "compute_dtype")), None)
    dtype = str(found or _tensor(opened[0]).dtype).removeprefix("torch.")
    return {"model": f"{type(model).__name__} in memory", "compute_dtype": dtype, "device": str(opened[2])}


def _evaluation(summary: Mapping[str, Any], name: str) -> Evaluation | None:
    return None if summary.get(name) is None else Evaluation.from_dict(summary[name])
