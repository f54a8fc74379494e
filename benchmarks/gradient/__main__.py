"""One run, and a line of what came of it in `benchmarks/results/gradient.jsonl`.

Run `python -m benchmarks.gradient MODEL DATA TASK WAY SEED [STEPS]`. DATA holds `sst2/{train,test}.tsv`,
`trec/trec_{train,test}.jsonl` and `ag_news/ag_{train,test}.jsonl`.
"""

import json
import platform
import random
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from zoquant.files.json_lines import append_line
from zoquant.tasks import TaskSettings
from zoquant.training import Config, Settings, finetune

RESULTS = Path(__file__).parent.parent / "results" / "gradient.jsonl"
ROWS = 1000
TASKS = {
    "sst2": ("{sentence} It was {label}", {"0": "terrible", "1": "great"}),
    "trec": (
        "Question: {text}\nType: {label}",
        {
            "NUM": "number", "LOC": "location", "HUM": "person", "DESC": "description", "ENTY": "entity",
            "ABBR": "abbreviation",
        },
    ),
    "ag_news": ("{text}\nTopic: {label}", {"1": "world", "2": "sports", "3": "business", "4": "science"}),
}  # fmt: skip
BACKWARD = Settings(steps=100, gradient="backward", checkpoint=True)
WAYS = {
    "forward, defaults": Settings(steps=500),
    "backward, adam": BACKWARD,
    "backward, adam, micro-batches of 2": replace(BACKWARD, micro_batches=8),
    "backward, sign, micro-batches of 2": replace(BACKWARD, micro_batches=8, rule="sign", lr=1e-3),
}


def rows_of(folder: Path, task: str, part: str) -> list[dict[str, Any]]:
    """Read the rows of a part of a data set."""
    if task == "sst2":
        lines = (folder / "sst2" / f"{part}.tsv").read_text(encoding="utf-8").splitlines()
        return [dict(zip(("sentence", "label"), line.rsplit("\t", 1), strict=True)) for line in lines if line.strip()]
    name = {"trec": "trec/trec", "ag_news": "ag_news/ag"}[task]
    text = (folder / f"{name}_{part}.jsonl").read_text(encoding="utf-8")
    return [{**row, "label": str(row["label"])} for row in map(json.loads, text.splitlines())]


def main(model: str, data: str, task: str, way: str, seed: str, steps: str | None = None) -> None:
    """Train on rows drawn by the seed, and write down what came of it."""
    template, labels = TASKS[task]
    with tempfile.TemporaryDirectory() as folder:
        train, test = rows_of(Path(data), task, "train"), rows_of(Path(data), task, "test")
        random.Random(int(seed)).shuffle(train)
        paths = {name: Path(folder, f"{name}.jsonl") for name in ("train", "test")}
        for name, rows in (("train", train[:ROWS]), ("test", test)):
            paths[name].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        settings = replace(WAYS[way], seed=int(seed), steps=int(steps or WAYS[way].steps))
        asked = TaskSettings(template=template, labels=labels)
        config = Config(
            model, str(paths["train"]), asked, str(paths["test"]), compute_dtype="float32", device="cpu",
            settings=settings,
        )  # fmt: skip
        start = time.perf_counter()
        found = finetune(config, Path(folder, "run"), on_progress=lambda progress: print(progress, flush=True))
        before, after = found["eval_before"], found["eval_after"]
        line = {
            "task": task, "way": way, "seed": int(seed), "steps": found["steps"], "batch": settings.batch_size,
            "before": before["accuracy"], "after": after["accuracy"], "interval": after["accuracy_interval"],
            "examples": after["examples"], "minutes": (time.perf_counter() - start) / 60,
            "step_seconds": found["step_seconds"], "overhead": found["overhead"],
            "loaded_mib": found["rss_loaded_bytes"] / 2**20, "peak_mib": found["rss_peak_bytes"] / 2**20,
            "delta_mib": found["delta_bytes"] / 2**20, "changed": found.get("changed"),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} thread, others at work",
            "torch": torch.__version__,
        }  # fmt: skip
        append_line(RESULTS, line)


if __name__ == "__main__":
    main(*sys.argv[1:])
