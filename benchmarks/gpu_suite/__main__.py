"""Measure, print, and write JSON; end with status 1 where a kernel differs from the CPU or a case breaks."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

import benchmarks.gpu_suite
from benchmarks.bench.results import file_name
from benchmarks.gpu_suite import PARTS, lines, suite
from benchmarks.gpu_suite.cases import FAILED


def main() -> None:
    """Run the suite as the command line says."""
    parser = argparse.ArgumentParser(
        description=benchmarks.gpu_suite.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--tiny", action="store_true", help="small shapes: whether it runs, not what it costs")
    parser.add_argument("--rounds", type=int, default=10, help="repetitions, two or more")
    parser.add_argument("--only", default="", help="part of a model's name")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure")
    parser.add_argument("--out", type=Path, help="folder that gets gpu-<device>.json, written anew after each part")
    chosen = parser.parse_args()

    def write(found: dict[str, Any]) -> None:
        if chosen.out is not None:
            path = chosen.out / f"gpu-{file_name(found['machine']['processor'])}.json"
            path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    found = suite(
        torch.device(chosen.device), tiny=chosen.tiny, rounds=chosen.rounds, only=chosen.only, parts=chosen.parts,
        done=write,
    )  # fmt: skip
    print("\n".join(lines(found)))
    broken = any(case.get("skipped", "").startswith(FAILED) for case in found.get("cases", {}).values())
    sys.exit(1 if broken or not all(found.get("checks", {}).values()) else 0)


if __name__ == "__main__":
    main()
