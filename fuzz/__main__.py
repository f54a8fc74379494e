"""Fuzz every parser with atheris: `python -m fuzz --count 1000000`, in an environment that has atheris.

One process for each target; a run goes on where the last one stopped. A finding ends its target, is saved with all of
its files, and makes the exit code 1.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

_REPORT_EVERY = 1000
_LIMIT_EVERY = 64
_TRACE_EVERY = 16
_SCRIPT_BYTES = 96


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000, help="cases in all, those of earlier runs included")
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"), help="corpus, counts and findings")
    parser.add_argument("--target", help="this one alone")
    parser.add_argument("--again", type=Path, help="run one saved script on --target, and show what it raises")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.again:
        _again(given.target, given.again)
    elif given.target:
        _fuzz(given.target, given.count, given.out.resolve())
    else:
        sys.exit(_all(given.count, given.out))


def _all(count: int, out: Path) -> int:
    from fuzz.targets import target_names

    names, broken = target_names(), []
    each = -(-count // len(names))
    for name in names:
        command = [sys.executable, "-m", "fuzz", "--target", name, "--count", str(each), "--out", str(out)]
        start, before = time.monotonic(), _done(out, name)
        with (out / f"{name}.log").open("wb") as log:
            code = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
        done, seconds = _done(out, name), time.monotonic() - start
        verdict = "ok" if code == 0 and done >= each else f"FAILED, exit code {code}: see {out / name}.log"
        print(f"{name:24} {done:>9,} cases  {(done - before) / seconds:7,.0f} a second  {verdict}", flush=True)
        broken += [] if verdict == "ok" else [name]
    print(f"{sum(_done(out, name) for name in names):,} cases, {len(broken)} targets failed: {', '.join(broken)}")
    return 1 if broken else 0


def _fuzz(name: str, count: int, out: Path) -> None:
    """Fuzz one target in this process until it has had `count` cases; libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["zoquant"]):
        from fuzz.guard import FindingError, limit_memory
        from fuzz.targets import make_target

    done = _done(out, name)
    if done >= count:
        return
    corpus, counter = out / name / "corpus", out / name / "count"
    corpus.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        target = make_target(name, Path(folder))

        def one(script: bytes) -> None:
            nonlocal done
            if done % _LIMIT_EVERY == 0:
                limit_memory()
            try:
                target.run(script, traced=done % _TRACE_EVERY == 0)
            except FindingError:
                target.save(script, out / name / f"finding-{done}")
                counter.write_text(str(done))
                raise
            done += 1
            if done % _REPORT_EVERY == 0 or done == count:
                counter.write_text(str(done))

        # libFuzzer runs the corpus first, and counts it.
        runs = count - done
        atheris.Setup([
            "fuzz", f"-runs={runs}", f"-max_len={_SCRIPT_BYTES}", "-len_control=0", "-rss_limit_mb=4096", "-timeout=60",
            "-print_final_stats=1", f"-artifact_prefix={out / name}/", str(corpus),
        ], one)  # fmt: skip
        atheris.Fuzz()


def _again(name: str, script: Path) -> None:
    from fuzz.targets import make_target

    with TemporaryDirectory() as folder:
        print("taken for a checkpoint:", make_target(name, Path(folder)).run(script.read_bytes()))


def _done(out: Path, name: str) -> int:
    counter = out / name / "count"
    return int(counter.read_text()) if counter.exists() else 0


if __name__ == "__main__":
    main()
