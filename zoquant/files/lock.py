"""One process a folder: a lock that the system takes back from a process that is gone, whatever ended it.

The lock is the system's own on an open file (flock), so there is nothing to clean up after a kill or a power failure,
and no clock and no process number decides whether it is free. What stands in the file is for people.
"""

import json
import os
import socket
import sys
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from zoquant.errors import FolderInUseError
from zoquant.files.atomic_files import writing

_MOST = 4096
"""Bytes that are read of what a holder said of itself."""


class Lock:
    """A lock on a file.

    Args:
        path: the file; it is made, and taken away on release.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = -1

    def acquire(self) -> None:
        """Take the lock, without waiting.

        Raises:
            FolderInUseError: somebody holds it; the message says who.
            WriteError: the file cannot be made.
        """
        while self._file < 0:
            with writing(self.path):
                file = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
            try:
                self._file = self._claim(file)
            finally:
                if self._file < 0:
                    os.close(file)

    def release(self) -> None:
        """Give the lock back; nothing happens if it is not held."""
        if self._file >= 0:
            with suppress(OSError):
                self.path.unlink()
            os.close(self._file)
            self._file = -1

    def _claim(self, file: int) -> int:
        """Lock an open file; return it, or -1 if the holder before has taken it away meanwhile."""
        try:
            _lock(file)
        except BlockingIOError as error:
            raise FolderInUseError(
                f"{self.path.parent}: a run is under way here, held by {_holder(file)}. Wait for it, stop it, or "
                "choose another folder."
            ) from error
        except OSError as error:
            raise FolderInUseError(
                f"{self.path.parent}: this file system gives no locks ({error.strerror}), so a second run could not be "
                "noticed. Choose a folder on another one."
            ) from error
        with writing(self.path):
            if not self.path.exists() or not os.path.samestat(os.fstat(file), os.stat(self.path)):
                return -1
            os.ftruncate(file, 0)
            os.pwrite(file, json.dumps(_myself()).encode(), 0)
        return file


def _lock(file: int) -> None:
    """Lock an open file, or raise BlockingIOError."""
    if sys.platform == "win32":
        import msvcrt

        os.lseek(file, 1 << 30, os.SEEK_SET)
        try:
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError from error
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _myself() -> dict[str, str | int]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def _holder(file: int) -> str:
    """Return who holds the lock, as far as it has said."""
    try:
        found = json.loads(os.pread(file, _MOST, 0))
        return f"process {int(found['pid'])} on {str(found['host'])[:80]!r} since {str(found['since'])[:40]!r}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "a process that has not said its name"
