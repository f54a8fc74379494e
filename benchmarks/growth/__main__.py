"""Measure what is missing, draw it, and say in words what grows how."""

import argparse
from pathlib import Path

import benchmarks.growth
from benchmarks.growth.lines import fits, plot, told
from benchmarks.growth.points import points, run


def main() -> None:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(
        description=benchmarks.growth.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/growth.json"))
    parser.add_argument("--plot", type=Path, help="a PNG file")
    parser.add_argument("--largest", type=int, default=360, help="million weights of the largest model")
    parser.add_argument("--short", action="store_true", help="two rounds and the smallest models")
    chosen = parser.parse_args()
    found = run(points(chosen.largest, short=chosen.short), chosen.out, short=chosen.short)
    for name, each in fits(found["points"]).items():
        print(told(name, each))
    if chosen.plot is not None:
        plot(found, chosen.plot)


if __name__ == "__main__":
    main()
