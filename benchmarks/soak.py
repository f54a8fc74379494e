"""Kill training at random moments, go on each time, and compare the end with a run that was never stopped.

    python -m benchmarks.soak --kills 500 --fresh 10 --out benchmarks/results/soak.json

Most lives of a run are forks of this process, which has the libraries and the model in memory already, so that a life
costs a fraction of a second; `--fresh` kills are of whole `zoquant train` processes. After every kill delta and
trajectory must be absent or whole, and the journal must hold every step that the run had reported.
"""

import argparse
import json
import mmap
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from tests.tiny import LABELS, ROWS, TEMPLATE, write_checkpoint, write_rows
from zoquant import Trajectory
from zoquant.files.atomic_files import write_text
from zoquant.record.delta import read_delta
from zoquant.tasks import Classification, Template
from zoquant.tasks.template import parse_words
from zoquant.training import Job, Progress, RunFolder, Settings, Source, run

SETTINGS = Settings(steps=12, batch_size=2, lr=1e-3, eps=1e-2, rule="momentum")
CALIBRATED = 0.2
"""Share of the kills on runs whose lr is calibrated first, so that a kill can fall there, too."""
EVAL_EVERY = 4
AIMED = 0.25
"""Share of the kills that wait for the last step: what follows is short, and a random moment would hardly hit it."""


Moment = Callable[[RunFolder, int], float]
"""Says for how many seconds from now a process that trains in a folder may live."""


class SoakError(AssertionError):
    """A kill lost something."""


@dataclass
class Found:
    """What a soak came to.

    Attributes:
        kills: processes killed.
        fresh: of them, whole processes of the command line.
        runs: runs that came to their end, and were equal to the uninterrupted one.
        most_kills_of_a_run: kills that one run survived.
        before_the_folder, before_the_steps, in_the_steps, at_the_end: where the kills fell, by what was on disk.
        steps_lost: steps that had been reported and were not in the journal.
        files_damaged: deltas, trajectories and journals that could not be read.
    """

    kills: int = 0
    fresh: int = 0
    runs: int = 0
    most_kills_of_a_run: int = 0
    before_the_folder: int = 0
    before_the_steps: int = 0
    in_the_steps: int = 0
    at_the_end: int = 0
    steps_lost: int = 0
    files_damaged: int = 0

    def plus(self, other: "Found") -> "Found":
        """Return what two soaks came to together."""
        both = {name: value + getattr(other, name) for name, value in asdict(self).items()}
        most = max(self.most_kills_of_a_run, other.most_kills_of_a_run)
        return Found(**{**both, "most_kills_of_a_run": most})


class Soak:
    """One checkpoint, one uninterrupted run, and the lives of others beside it.

    Args:
        home: an empty folder.
        seed: of the moments.
        settings: of the runs.
        tell: called with what was found, after each kill.
    """

    def __init__(
        self, home: Path, seed: int = 0, settings: Settings = SETTINGS, tell: Callable[[Found], None] = lambda _: None
    ) -> None:
        self.home = home
        self.tell = tell
        self.random = random.Random(seed)
        self.settings = settings
        self.found = Found()
        self._known: set[int] = {-1}
        home.mkdir(parents=True, exist_ok=True)
        self.checkpoint, self.rows = write_checkpoint(home / "tiny.gguf"), write_rows(home / "rows.jsonl")
        self.source = Source(str(self.checkpoint), compute_dtype="float32", device="cpu")
        self.model, tokenizer, device = self.source.open()
        self.examples = Classification(ROWS, Template(TEMPLATE, parse_words(LABELS)), tokenizer, device)
        self.reported = mmap.mmap(-1, 8)
        for name in ("warm", "whole"):
            start = time.perf_counter()
            self._wait(self._fork(RunFolder(home / name)), None)
            self.seconds = time.perf_counter() - start
        self.whole = _bytes(RunFolder(home / "whole"))
        self.steps = Trajectory.load(home / "whole" / "trajectory.safetensors").steps

    def forks(self, kills: int) -> None:
        """Kill so many forks, and let the last run come to its end."""
        self._runs(kills, self._fork, self._moment_of_fork)

    def processes(self, kills: int) -> None:
        """Kill so many processes of `zoquant train`, each at a moment after it has taken its folder."""
        before = self.found.kills
        self._runs(kills, self._process, self._moment_of_process)
        self.found.fresh += self.found.kills - before

    def _runs(self, kills: int, live: Callable[[RunFolder], int], moment: Moment) -> None:
        last, here = self.found.kills + kills, 0
        folder = RunFolder(self.home / f"run-{self.found.runs}")
        while self.found.kills < last or here:
            start, child = time.perf_counter(), live(folder)
            kill = None if self.found.kills >= last else moment(folder, child)
            if self._wait(child, kill) is not None:
                self.found.kills, here = self.found.kills + 1, here + 1
                self._check(folder)
                self.tell(self.found)
                continue
            if not here and live == self._fork:
                self.seconds = (self.seconds + time.perf_counter() - start) / 2  # the machine may have other work, too
            self._compare(folder)
            self.found.runs += 1
            self.found.most_kills_of_a_run = max(here, self.found.most_kills_of_a_run)
            shutil.rmtree(folder.path)
            folder, here = RunFolder(self.home / f"run-{self.found.runs}"), 0

    def _fork(self, folder: RunFolder) -> int:
        """Train in a fork of this process; return its number."""
        self.reported[:] = bytes(8)
        child = os.fork()
        if child:
            return child
        code = 1
        try:
            job = Job(self.model, self.examples, self.examples, self.settings, folder, {}, EVAL_EVERY)
            run(job, resume=folder.path.exists(), on_progress=self._note)
            code = 0
        finally:
            os._exit(code)

    def _process(self, folder: RunFolder) -> int:
        """Train with the command line in a process of its own; return its number."""
        self.reported[:] = bytes(8)
        chosen = self.settings
        words = [
            "train", str(self.checkpoint), "--data", str(self.rows), "--eval-data", str(self.rows),
            "--template", TEMPLATE, "--labels", LABELS, "--out", str(folder.path), "--steps", str(chosen.steps),
            "--batch-size", str(chosen.batch_size), "--eps", str(chosen.eps), "--rule", chosen.rule or "sgd",
            *([] if chosen.lr is None else ["--lr", str(chosen.lr)]),
            "--eval-every", str(EVAL_EVERY), "--compute-dtype", "float32", "--device", "cpu", "--json",
            *(["--resume"] if folder.path.exists() else []),
        ]  # fmt: skip
        program = [sys.executable, "-c", "from zoquant.cli.app import main; main()", *words]
        return subprocess.Popen(program, stdout=subprocess.DEVNULL).pid

    def _moment_of_fork(self, folder: RunFolder, child: int) -> float:
        """Return for how long a fork may live; now and then wait first until it has done its last step."""
        if self.random.random() > AIMED:
            return self.random.uniform(0, self.seconds)
        while int.from_bytes(self.reported[:], "little") < self.settings.steps and not _ended(child):
            time.sleep(0.0005)
        return self.random.uniform(0, self.seconds / self.settings.steps)

    def _moment_of_process(self, folder: RunFolder, child: int) -> float:
        """Wait until the process holds the lock of its folder; return for how long it may live on."""
        end = time.monotonic() + 300
        while not folder.lock.path.exists() or _pid(folder.lock.path) in self._known:
            if _ended(child) or time.monotonic() > end:
                raise SoakError(f"process {child} did not take its folder")
            time.sleep(0.01)
        self._known.add(_pid(folder.lock.path))
        return self.random.uniform(0, self.seconds)

    def _note(self, progress: Progress) -> None:
        self.reported[:] = progress.step.to_bytes(8, "little")

    def _wait(self, child: int, seconds: float | None) -> int | None:
        """Wait for the end of a child, or kill it; return None if it ended by itself and well."""
        end = None if seconds is None else time.monotonic() + seconds
        while end is None or time.monotonic() < end:
            done, status = os.waitpid(child, os.WNOHANG if end is not None else 0)
            if done:
                if os.waitstatus_to_exitcode(status):
                    raise SoakError(f"a run ended with {os.waitstatus_to_exitcode(status)} and nobody had killed it")
                return None
            time.sleep(min(0.001, max(0.0, (end or 0) - time.monotonic())))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        return None if os.waitstatus_to_exitcode(status) == 0 else -status

    def _check(self, folder: RunFolder) -> None:
        """Read what a kill has left."""
        self._place(folder)
        try:
            if folder.delta.exists():
                read_delta(folder.delta)
            ends = [Trajectory.load(p).steps for p in (folder.trajectory, folder.journal) if p.exists()]
        except Exception as error:
            self.found.files_damaged += 1
            raise SoakError(f"{folder.path}: {error}") from error
        known, reported = max(map(len, ends), default=0), int.from_bytes(self.reported[:], "little")
        self.found.steps_lost += max(0, reported - known)
        if known < reported or any(steps != self.steps[: len(steps)] for steps in ends):
            raise SoakError(f"{folder.path}: {reported} steps were reported, {known} are kept, or others than before")

    def _place(self, folder: RunFolder) -> None:
        if not folder.settings.exists():
            self.found.before_the_folder += 1
        elif folder.delta.exists() or folder.trajectory.exists():
            self.found.at_the_end += 1
        elif folder.journal.exists():
            self.found.in_the_steps += 1
        else:
            self.found.before_the_steps += 1

    def _compare(self, folder: RunFolder) -> None:
        if _bytes(folder) != self.whole:
            raise SoakError(f"{folder.path}: ended with other bytes than the run that was never stopped")
        lines = [line["step"] for line in folder.read_metrics() if "loss" in line]
        evaluated = [step for step, _ in folder.evaluations()]
        if lines != list(range(1, self.settings.steps + 1)) or evaluated != list(
            range(0, self.settings.steps + 1, EVAL_EVERY)
        ):
            raise SoakError(f"{folder.path}: metrics have steps {lines} and evaluations {evaluated}")


def _ended(child: int) -> bool:
    """Whether a child has come to its end; it can still be waited for."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _bytes(folder: RunFolder) -> tuple[bytes, bytes]:
    return folder.delta.read_bytes(), folder.trajectory.read_bytes()


def _pid(lock: Path) -> int:
    try:
        return int(json.loads(lock.read_bytes())["pid"])
    except (OSError, ValueError):
        return -1


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=500, help="kills in all")
    parser.add_argument("--fresh", type=int, default=10, help="of them, kills of processes of the command line")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, help="where the result goes, as JSON")
    given = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()

    def tell(found: Found) -> None:
        if found.kills % 25 == 0:
            print(f"{found.kills} kills, {found.runs} runs, {time.perf_counter() - start:.0f} s", flush=True)

    calibrated = round(CALIBRATED * (given.kills - given.fresh))
    with TemporaryDirectory() as home:
        first = Soak(Path(home) / "given", given.seed, tell=tell)
        first.forks(given.kills - given.fresh - calibrated)
        first.processes(given.fresh)
        second = Soak(Path(home) / "calibrated", given.seed + 1, replace(SETTINGS, lr=None), tell)
        second.forks(calibrated)
    result: dict[str, Any] = {
        **asdict(first.found.plus(second.found)),
        "steps_a_run": SETTINGS.steps,
        "seconds": round(time.perf_counter() - start, 1),
        "seed": given.seed,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    text = json.dumps(result, indent=1) + "\n"
    print(text, end="")
    if given.out:
        write_text(given.out, text)


if __name__ == "__main__":
    main()
