"""What no parser may do, whatever it reads: take long, take much memory, open a file elsewhere, raise anything else."""

import os
import resource
import signal
import sys
import sysconfig
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import zoquant

SECONDS = 5.0
"""Processor time that a case may take."""
ALLOWANCE = 4 << 20
"""Bytes that a case may take beside twice its files: Python's objects are larger than what they are read from."""
REST = 64 << 20
"""Bytes that a process may grow by between two calls of `limit_memory`."""
_CODE = tuple(
    os.path.realpath(place)
    for place in (
        sysconfig.get_path("stdlib"),
        *(place for place in sys.path if place.endswith("site-packages")),  # atheris has an environment of its own
        str(Path(zoquant.__file__).parent),
    )
)


class FindingError(AssertionError):
    """A parser did what it must not do. The message says what."""


class _Hook:
    """Notices every file that is opened outside of a folder, while one is set."""

    def __init__(self) -> None:
        self.folder = ""
        self.strays: list[str] = []
        self.path = {os.path.realpath(place) for place in sys.path}
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.folder and event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], str | bytes):
            path = os.path.realpath(os.fsdecode(arguments[0]))
            if not path.startswith((self.folder, *_CODE)) and path not in self.path:
                self.strays.append(path)


_hook: list[_Hook] = []


@contextmanager
def guarded(folder: Path, size: int, *, traced: bool) -> Iterator[None]:
    """Watch what the block does with a checkpoint.

    Args:
        folder: the folder of the checkpoint, and of nothing else.
        size: bytes of its files.
        traced: whether to measure memory to the byte, which takes five times as long.

    Raises:
        FindingError: it took too long, or too much memory, or opened a file elsewhere.
    """
    hook = _hook[0] if _hook else _Hook()
    _hook[:] = [hook]
    hook.strays, hook.folder = [], str(folder)
    before = signal.signal(signal.SIGVTALRM, _too_long)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    if traced:
        tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
        hook.folder = ""
    if hook.strays:
        raise FindingError(f"opened {hook.strays[0]}, outside of the checkpoint.")
    if peak > 2 * size + ALLOWANCE:
        raise FindingError(f"took {peak} bytes of memory for files of {size} bytes.")


def limit_memory() -> None:
    """Let no allocation from now on take this process more than `REST` bytes above what it holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + REST
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def _too_long(number: int, frame: FrameType | None) -> None:
    raise FindingError(f"took more than {SECONDS} s of processor time.")
