"""The same cases for every target, without atheris: `python -m fuzz.short --count 300`."""

import argparse
import hashlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from fuzz.guard import FindingError
from fuzz.targets import Target, make_target, target_names

_BYTES = 64


def scripts(name: str, count: int) -> Iterator[bytes]:
    """Yield the scripts of a target: the same ones every time, and others for every target."""
    for number in range(count):
        yield hashlib.shake_128(f"{name} {number}".encode()).digest(_BYTES)


def try_all(target: Target, count: int) -> int:
    """Run so many cases; return how many the parser took for sound.

    Raises:
        FindingError: the parser did what it must not do; the message names the case.
    """
    taken = 0
    for number, script in enumerate(scripts(target.name, count)):
        try:
            taken += target.run(script, traced=number % 16 == 0)
        except FindingError as error:
            raise FindingError(f"{target.name}, case {number}: {error}") from error
    return taken


def main() -> None:
    """Run the command line; a finding makes the exit code 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=300, help="cases of each target")
    given = parser.parse_args()
    broken, start = 0, time.monotonic()
    for name in target_names():
        with TemporaryDirectory() as folder:
            try:
                taken = try_all(make_target(name, Path(folder)), given.count)
                print(f"{name:24} {given.count:>7,} cases, {taken:,} taken for sound", flush=True)
            except FindingError as error:
                broken += 1
                print(f"{name:24} FAILED: {error}", flush=True)
    cases = given.count * len(target_names())
    print(f"{cases:,} cases in {time.monotonic() - start:.0f} s, {broken} targets failed")
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
