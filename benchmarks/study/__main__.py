"""The command line of the study."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch

import benchmarks.study
from benchmarks.study.models import Models
from benchmarks.study.picture import plot
from benchmarks.study.record import Records, Result, TimeUpError
from benchmarks.study.report import table
from benchmarks.study.rows import rows
from benchmarks.study.work import Study
from zoquant.cli.demo import checkpoint

OPTIONS = "options.json"


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    given = _parser().parse_args(arguments)
    records = Records(given.out)
    if given.command == "run":
        _run(given, records)
        return
    options = records.keep(OPTIONS, lambda: _stop(f"{given.out}: holds no study. Begin one with run."))
    lines = rows(options["forwards"], options["long"])
    print(table(lines, records) if given.command == "table" else plot(lines, records, given.to))


def _run(given: argparse.Namespace, records: Records) -> None:
    torch.set_num_threads(given.threads)
    path = given.model or checkpoint()
    options = {"forwards": given.forwards, "long": given.long, "model": path.name}
    begun = records.keep(OPTIONS, lambda: options)
    if begun != options:
        _stop(f"{given.out}: was begun with {begun}, now it is {options}. Choose another --out.")
    study = Study(
        rows(given.forwards, given.long), Models(path, given.aqlm), given.data, records, _clock(given.minutes)
    )
    try:
        study.work(given.only)
    except TimeUpError:
        print("The time is up; the same command goes on.", flush=True)


def _clock(minutes: float | None) -> Callable[[], None]:
    """Return what raises TimeUpError once the minutes are over."""
    end = None if minutes is None else time.monotonic() + 60 * minutes

    def check() -> None:
        if end is not None and time.monotonic() > end:
            raise TimeUpError

    return check


def _stop(message: str) -> Result:
    raise SystemExit(message)


def _parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("benchmarks.study", description=benchmarks.study.__doc__, formatter_class=form)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="do the runs that are not done")
    run.add_argument("--data", type=Path, required=True, help="folder with train.tsv, dev.tsv and test.tsv")
    run.add_argument("--model", type=Path, help="GGUF file; default: the checkpoint of the demo")
    run.add_argument("--aqlm", type=Path, help="folder of benchmarks.quantize.aqlm; without it its rows are skipped")
    run.add_argument("--forwards", type=int, default=2000, help="forwards N of the comparison")
    run.add_argument("--long", type=int, default=20_000, help="forwards of the long run")
    run.add_argument("--minutes", type=float, help="stop after so many minutes")
    run.add_argument("--only", default="*", help="shell pattern on the names of the rows")
    run.add_argument("--threads", type=int, default=1, help="threads of torch")
    show, draw = commands.add_parser("table", help="print the table"), commands.add_parser("plot", help="draw it")
    draw.add_argument("--to", type=Path, default=Path("docs/images/study.png"), help="the PNG file")
    for command in (run, show, draw):
        command.add_argument("--out", type=Path, default=Path("benchmarks/results/study"), help="folder of the results")
    return parser


if __name__ == "__main__":
    main()
