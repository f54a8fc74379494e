"""One run, and a line of what came of it in `benchmarks/results/gradient.jsonl`.

Run `python -m benchmarks.gradient MODEL DATA TASK WAY SEED [STEPS]`. DATA holds `sst2/{train,test}.tsv`,
`trec/trec_{train,test}.jsonl` and `ag_news/ag_{train,test}.jsonl`. Those of `peers` need peft, NF4 bitsandbytes.
"""

import platform
import sys
from pathlib import Path

import torch

from benchmarks.gradient import ours
from benchmarks.gradient.measured import Run
from zoquant.files.json_lines import append_line

RESULTS = Path(__file__).parent.parent / "results" / "gradient.jsonl"


def main(model: str, data: str, task: str, way: str, seed: str, steps: str | None = None) -> None:
    """Do a run, and write down what came of it."""
    run = Run(model, Path(data), task, way, int(seed), None if steps is None else int(steps))
    if way == ours.BASE:
        found = ours.untrained(run)
    elif way in ours.WAYS:
        found = ours.train(run)
    else:
        from benchmarks.gradient import peers

        found = peers.train(run)
    machine = f"{platform.machine()}, {torch.get_num_threads()} thread of 2 cores, others at work"
    told = {"model": Path(model).stem, "task": task, "way": way, "seed": run.seed, **found}
    append_line(RESULTS, {**told, "machine": machine, "torch": torch.__version__})


if __name__ == "__main__":
    main(*sys.argv[1:])
