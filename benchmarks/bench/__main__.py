"""Measure, print, and write JSON."""

import argparse
from pathlib import Path

import benchmarks.bench
from benchmarks.bench.results import save
from benchmarks.bench.run import bench
from benchmarks.bench.table import COLUMNS, rows
from zoquant.cli.show import show_rows


def main() -> None:
    """Run the bench as the command line says."""
    parser = argparse.ArgumentParser(
        description=benchmarks.bench.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="a checkpoint")
    parser.add_argument("--batch", type=int, default=16, help="rows of the batch")
    parser.add_argument("--length", type=int, default=32, help="tokens a row")
    parser.add_argument("--rounds", type=int, default=15, help="repetitions, two or more; medians are shown")
    parser.add_argument("--quick", action="store_true", help="three rounds and few steps: whether it runs")
    parser.add_argument("--peers", action="store_true", help="also MeZO, QZO, LoRA and full fine-tuning")
    parser.add_argument(
        "--derivatives", action="store_true", help="also 200 derivatives against float32: 1,200 forwards, minutes"
    )
    parser.add_argument("--out", type=Path, help="folder that gets a JSON file with the device's name")
    chosen = parser.parse_args()
    if chosen.out is not None and not chosen.out.is_dir():
        parser.error(f"--out: {chosen.out} is no folder. Make it first.")
    found = bench(
        chosen.model, batch=chosen.batch, length=chosen.length, rounds=chosen.rounds, quick=chosen.quick,
        peers=chosen.peers, derivatives=chosen.derivatives,
    )  # fmt: skip
    show_rows(f"Bench of {chosen.model.name}", list(COLUMNS), [row.cells for row in rows(found)])
    if chosen.out is not None:
        print(f"Written to {save(found, chosen.out)}")


if __name__ == "__main__":
    main()
