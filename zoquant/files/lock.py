"""One process a folder: a lock that the system takes back from a process that is gone, whatever ended it.

The lock is the system's own on an open file (flock, through filelock), so there is nothing to clean up after a kill or
a power failure, and no clock and no process number decides whether it is free. What stands in it is for people.
"""

import json
import os
import socket
from contextlib import suppress
from datetime import datetime
from errno import ENOLCK, ENOSYS, EOPNOTSUPP
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from zoquant.errors import FolderInUseError
from zoquant.files.atomic_files import writing

_MOST = 4096
"""Bytes that are read of what a holder said of itself."""
_NO_LOCKS = (ENOLCK, ENOSYS, EOPNOTSUPP)
_PATIENCE = 0.02
"""Seconds in which a holder that is going may go."""


class Lock:
    """A lock on a file, which is made, and taken away on release."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held: BaseFileLock | None = None  # made when it is taken: it may be in a fork of who made this

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            FolderInUseError: somebody holds it, and the message says who; or the file system has no locks.
            WriteError: the file cannot be made.
        """
        if self._held is not None:
            return
        with writing(self.path):
            self._claim()
            try:
                self.path.write_text(json.dumps(_myself()), encoding="utf-8")
            except OSError:
                self.release()
                raise

    def release(self) -> None:
        """Give the lock back; nothing happens if it is not held."""
        if self._held is not None:
            with suppress(OSError):
                self.path.unlink()
            self._held.release()
            self._held = None

    def _claim(self) -> None:
        lock = FileLock(
            self.path, timeout=_PATIENCE, thread_local=False, fallback_to_soft=False, poll_interval=0.005
        )  # fmt: skip
        try:
            lock.acquire()
        except Timeout as error:
            raise FolderInUseError(
                f"{self.path.parent}: a run is under way here, held by {_holder(self.path)}. Wait for it, stop it, or "
                "choose another folder."
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            raise FolderInUseError(
                f"{self.path.parent}: this file system gives no locks ({error.strerror}), so a second run could not be "
                "noticed. Choose a folder on another one."
            ) from error
        self._held = lock


def _myself() -> dict[str, str | int]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def _holder(path: Path) -> str:
    """Return who holds the lock, as far as it has said."""
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(_MOST))
        return f"process {int(found['pid'])} on {str(found['host'])[:80]!r} since {str(found['since'])[:40]!r}"
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return "a process that has not said its name"
