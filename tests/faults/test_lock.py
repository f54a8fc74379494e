"""Two runs into one folder: the second is refused and told who is there; a dead holder holds nothing."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.runs import files, job
from zoquant.errors import FolderInUseError, WriteError
from zoquant.files.lock import Lock
from zoquant.training import Progress, run

HOLD = """
import sys, time
from pathlib import Path
from zoquant.files.lock import Lock
lock = Lock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
time.sleep(600)
"""


def test_a_second_run_into_the_folder_is_told_who_is_there(tmp_path: Path) -> None:
    refused: list[str] = []

    def second(progress: Progress) -> None:
        with pytest.raises(FolderInUseError) as caught:
            run(job(tmp_path / "run"), resume=True)
        refused.append(str(caught.value))

    run(job(tmp_path / "run"), on_progress=second)
    run(job(tmp_path / "alone"))
    assert files(tmp_path / "run") == files(tmp_path / "alone")
    assert len(refused) == 7  # what was chosen, and six steps
    assert f"held by process {os.getpid()} on {socket.gethostname()!r} since '20" in refused[0]
    assert not (tmp_path / "run" / "run.lock").exists()


def test_a_lock_is_taken_in_a_fork_of_who_made_it(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "run.lock")
    if (child := os.fork()) == 0:
        code = 1
        try:
            lock.acquire()
            lock.release()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    lock.acquire()
    lock.release()


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(FolderInUseError, match=f"held by process {holder.pid} on "):
            Lock(path).acquire()
        holder.send_signal(signal.SIGKILL)
    assert path.exists()
    lock = Lock(path)
    lock.acquire()
    assert str(os.getpid()) in path.read_text()
    lock.release()
    assert not path.exists()


@pytest.mark.parametrize("said", [b"", b"{", b"[1]", b'{"pid": "x"}', b'{"pid": 1e999}', b"[" * 100_000])
def test_a_holder_that_says_nonsense(tmp_path: Path, said: bytes) -> None:
    lock = Lock(tmp_path / "run.lock")
    lock.acquire()
    lock.path.write_bytes(said)
    with pytest.raises(FolderInUseError, match="held by a process that has not said its name"):
        Lock(lock.path).acquire()
    lock.release()


def test_a_lock_taken_away_while_another_waits_for_it_is_not_two_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file that was opened is gone when its lock is free: the new one must be locked instead."""
    first, second = Lock(tmp_path / "run.lock"), Lock(tmp_path / "run.lock")
    first.acquire()
    lock = fcntl.flock
    tried: list[int] = []

    def taken_away(file: int, how: int) -> None:
        if not tried:
            tried.append(file)
            first.release()
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", taken_away)
    # A busy machine may take longer than a holder that is going.
    monkeypatch.setattr("zoquant.files.lock._PATIENCE", 10)
    second.acquire()
    assert tried
    monkeypatch.setattr("zoquant.files.lock._PATIENCE", 0.02)
    with pytest.raises(FolderInUseError):
        Lock(tmp_path / "run.lock").acquire()
    second.release()


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    def refuse(file: int, how: int) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(FolderInUseError, match="this file system gives no locks"):
        Lock(tmp_path / "run.lock").acquire()


def test_a_lock_through_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "run.lock").symlink_to("precious")
    with pytest.raises(WriteError):
        Lock(tmp_path / "run.lock").acquire()
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_run_that_cannot_resume_gives_the_lock_back(tmp_path: Path) -> None:
    run(job(tmp_path / "run"))
    (tmp_path / "run" / "settings.json").write_text("[]")
    with pytest.raises(Exception, match="expected a JSON object"):
        run(job(tmp_path / "run"), resume=True)
    assert not (tmp_path / "run" / "run.lock").exists()


def test_a_lock_that_cannot_say_whose_it_is_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    lock = Lock(tmp_path / "run.lock")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(WriteError, match=r"run\.lock: cannot be written: No space left"):
            lock.acquire()
    assert list(tmp_path.iterdir()) == []
    other = Lock(tmp_path / "run.lock")
    other.acquire()
    other.release()
