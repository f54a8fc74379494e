"""The command that trains."""

from pathlib import Path
from typing import Annotated, Any

import typer

from zoquant.cli.app import JSON, Device, Dtype, Model, RuntimeName, _runtime, app
from zoquant.cli.progress import reporting
from zoquant.cli.show import mebibytes, score, show_json, show_pairs
from zoquant.cli.task import (
    KIND,
    METRIC,
    OPTIONS,
    STOP,
    TOKENS,
    Data,
    LabelColumn,
    Labels,
    MaxNewTokens,
    MetricName,
    Options,
    Protocol,
    Stop,
    TaskName,
    TemplateText,
    task_settings,
)
from zoquant.settings import Settings

_DEFAULT = Settings()

Patterns = Annotated[list[str] | None, typer.Option(help="Keys to move, as shell patterns; may be repeated.")]


@app.command("train")
def train_command(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option(help="The folder of the run; must not exist, unless --resume.")],
    task: TaskName = KIND,
    template: TemplateText = None,
    labels: Labels = None,
    label_column: LabelColumn = None,
    options: Options = OPTIONS,
    metric: MetricName = METRIC,
    max_new_tokens: MaxNewTokens = TOKENS,
    stop: Stop = STOP,
    protocol: Protocol = None,
    objective: Annotated[
        str, typer.Option(help="loss, or what is made larger: accuracy, f1, exact-match, rouge-l, reward.")
    ] = "loss",
    reward: Annotated[
        str | None, typer.Option(help="A URL or a shell command: JSON with generations in, one number out.")
    ] = None,
    reward_timeout: Annotated[float, typer.Option(help="Seconds to wait for the reward, in each of three tries.")] = 30,
    eval_data: Annotated[str | None, typer.Option(help="Rows to evaluate on before and after.")] = None,
    eval_every: Annotated[int, typer.Option(help="Evaluate every so many steps as well.")] = 0,
    steps: Annotated[int, typer.Option(help="Number of steps.")] = _DEFAULT.steps,
    batch_size: Annotated[int, typer.Option(help="Examples a step.")] = _DEFAULT.batch_size,
    lr: Annotated[float | None, typer.Option(help="Learning rate at the start. Not given: calibrated.")] = _DEFAULT.lr,
    eps: Annotated[
        float | None, typer.Option(help="Length of a probe, relative to each value. Not given: calibrated.")
    ] = _DEFAULT.eps,
    clip: Annotated[
        float | None, typer.Option(help="Bound on the derivative, inf for none. Calibrated along with lr and eps.")
    ] = _DEFAULT.clip,
    schedule: Annotated[str, typer.Option(help="Course of the rate: constant, linear, cosine.")] = _DEFAULT.schedule,
    subspace: Annotated[
        str, typer.Option(help="What directions are made of: values, rows-columns, or auto to choose.")
    ] = _DEFAULT.subspace,
    probes: Annotated[int, typer.Option(help="Directions a step.")] = _DEFAULT.probes,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = _DEFAULT.seed,
    noise: Annotated[str, typer.Option(help="rademacher, gaussian or sphere.")] = _DEFAULT.noise,
    density: Annotated[float, typer.Option(help="Share of the units that a direction moves.")] = _DEFAULT.density,
    unit: Annotated[str, typer.Option(help="What moves or stays as a whole: element, view, layer.")] = _DEFAULT.unit,
    estimator: Annotated[str, typer.Option(help="two-point, one-sided or fzoo.")] = _DEFAULT.estimator,
    rule: Annotated[str, typer.Option(help="sgd, momentum, sign or adam.")] = _DEFAULT.rule,
    decay: Annotated[float, typer.Option(help="Pull back to the base, per unit of lr.")] = _DEFAULT.decay,
    space: Annotated[str, typer.Option(help="relative or absolute.")] = _DEFAULT.space,
    coupled: Annotated[bool, typer.Option(help="Move the scales of a block together.")] = _DEFAULT.coupled,
    role: Annotated[list[str] | None, typer.Option(help="What moves: scale, zero, ...; may be repeated.")] = None,
    include: Patterns = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Keys to leave alone; may be repeated.")] = None,
    runtime: RuntimeName = "auto",
    compute_dtype: Dtype = "auto",
    device: Device = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out, to the same end.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    json: JSON = False,
) -> None:
    """Fine-tune a checkpoint on rows of data. Ctrl-C saves; --resume goes on to the very same bytes.

    Example: `zoquant train model.gguf --data train.jsonl --eval-data test.jsonl
    --template "{sentence} It was {label}" --labels "0=terrible,1=great" --out run`
    """
    from zoquant.finetune import Source, finetune
    from zoquant.rewards import OutsideReward

    asked = task_settings(task, template, labels, label_column, options, metric, max_new_tokens, stop)
    chosen: dict[str, Any] = {"schedule": schedule, "noise": noise, "unit": unit, "space": space, "subspace": subspace}
    settings = Settings(
        steps=steps, batch_size=batch_size, lr=lr, eps=eps, clip=clip, probes=probes, seed=seed, coupled=coupled,
        density=density, estimator=estimator, rule=rule, decay=decay,
        roles=tuple(role) if role else _DEFAULT.roles,  # type: ignore[arg-type]
        include=tuple(include) if include else None, exclude=tuple(exclude) if exclude else None, **chosen,
    )  # fmt: skip
    source = Source(model, runtime=_runtime(runtime), compute_dtype=compute_dtype, device=device)
    with reporting(quiet or json) as report:
        summary = finetune(
            source, data, asked, out, settings=settings, eval_data=eval_data, eval_every=eval_every,
            protocol=protocol, objective=objective,
            reward=None if reward is None else OutsideReward(reward, reward_timeout), resume=resume, report=report,
        )  # fmt: skip
    if json:
        show_json(summary)
        return
    show_summary(summary, out)
    if not summary["finished"]:
        print(f"Interrupted after {summary['steps']} steps; everything is saved. Go on with --resume.")
    else:
        print(f"Next: zoquant export {model} --delta {out / 'delta.safetensors'} --out tuned{Path(model).suffix}")


def show_summary(summary: dict[str, Any], out: Path) -> None:
    """Print what a run came to as a short table."""
    pairs: dict[str, Any] = {
        "model": f"{summary['model']} ({summary['format']})",
        "trained": f"{summary['trainable']:,} values in {summary['views']} views, {summary['steps']} steps",
    }
    for when in ("before", "after"):
        found = summary[f"eval_{when}"]
        if found is not None:
            pairs[f"held-out {when}"] = score(found)
    if "test" in summary:
        pairs["test"] = score(summary["test"])
    if summary["skipped"]:
        pairs["skipped"] = f"{summary['skipped']} steps without a finite loss; metrics.jsonl says why"
    pairs |= {
        "step": f"{summary['step_seconds']:.3f} s, {summary['overhead']:.3f} x its forwards",
        "memory": f"{mebibytes(summary['rss_peak_bytes'])} at its peak",
        "delta": mebibytes(summary["delta_bytes"]),
        "trajectory": mebibytes(summary["trajectory_bytes"]),
        "files": out,
    }
    if summary["export_path"] is not None:
        pairs["tuned checkpoint"] = summary["export_path"]
    show_pairs("zoquant", pairs)
