"""The journal: whole after a kill at any byte, and never taken for something it is not."""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoquant import Noise, Trajectory
from zoquant.errors import CheckpointError, WriteError
from zoquant.record.group import Group
from zoquant.record.journal import MAGIC, Journal, encode_header
from zoquant.record.rules import Adam
from zoquant.record.step import Step

STEPS = [Step((2**63 - 1 - n, n), (0.5 + n, -1e-300), (1e-3 * n,)) for n in range(6)]
RUN = Trajectory((Group({"a.d": "00ff"}, "absolute", Noise("sphere", 0.5), True, Adam(), 0.25),), "fzoo", steps=STEPS)
RECORD = 4 + 8 + 2 * 16 + 4


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("journal") / "t.journal"
    with RUN.prefix(2).journal(path, 2) as journal:
        for step in STEPS[2:]:
            journal.append(step)
    return path


@pytest.fixture(scope="module")
def scratch(file: Path) -> Path:
    return file.with_name("scratch")


def test_what_is_written_is_read(file: Path) -> None:
    assert Trajectory.load(file) == RUN
    data = file.read_bytes()
    assert data.startswith(MAGIC)
    assert len(data) == len(encode_header({"kind": "trajectory", **RUN.header(), "probes": 2})) + 6 * RECORD


def test_cut_at_every_byte_of_the_records(file: Path, scratch: Path) -> None:
    data = file.read_bytes()
    start = len(data) - len(STEPS) * RECORD
    for cut in range(start, len(data) + 1):
        scratch.write_bytes(data[:cut])
        assert Trajectory.load(scratch) == RUN.prefix((cut - start) // RECORD)


def test_cut_at_every_byte_of_the_header(file: Path, scratch: Path) -> None:
    data = file.read_bytes()
    for cut in range(len(data) - len(STEPS) * RECORD):
        scratch.write_bytes(data[:cut])
        with pytest.raises(CheckpointError, match="scratch"):
            Trajectory.load(scratch)


@given(st.data())
def test_a_flipped_bit_is_never_read_as_another_number(file: Path, scratch: Path, data: st.DataObject) -> None:
    """Damage in the last record is a step that was cut off; anywhere else it is an error."""
    whole = bytearray(file.read_bytes())
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= 1 << data.draw(st.integers(0, 7))
    scratch.write_bytes(whole)
    if at >= len(whole) - RECORD:
        assert Trajectory.load(scratch) == RUN.prefix(5)
    else:
        with pytest.raises(CheckpointError, match="scratch"):
            Trajectory.load(scratch)


@given(st.integers(1, 3), st.binary(max_size=3 * RECORD))
def test_garbage_behind_the_records_is_left_out(file: Path, scratch: Path, lost: int, garbage: bytes) -> None:
    """A file system may give a file its new length before the bytes."""
    data = file.read_bytes()[: -lost * RECORD]
    for tail in (garbage, bytes(len(garbage))):
        scratch.write_bytes(data + tail)
        assert Trajectory.load(scratch) == RUN.prefix(6 - lost)


def test_a_record_of_another_journal_does_not_count(file: Path, scratch: Path) -> None:
    other = Trajectory((Group({"a.d": "ff00"}),), steps=STEPS)
    with other.journal(scratch, 2):
        pass
    foreign = scratch.read_bytes()[-RECORD:]
    scratch.write_bytes(file.read_bytes()[:-RECORD] + foreign)
    assert Trajectory.load(scratch) == RUN.prefix(5)


def test_going_on_from_a_torn_journal(file: Path, scratch: Path) -> None:
    scratch.write_bytes(file.read_bytes()[: -RECORD - 7])
    found = Trajectory.load(scratch)
    with found.journal(scratch, 2) as journal:
        for step in STEPS[journal.count :]:
            journal.append(step)
    assert scratch.read_bytes() == file.read_bytes()


def test_a_full_disk_leaves_the_records_that_were_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t"
    journal = RUN.prefix(3).journal(path, 2)
    writing = os.write
    budget = [RECORD // 2]

    def limited(target: int, data: Any) -> int:
        if not budget[0]:
            raise OSError(28, "No space left on device")
        done = writing(target, data[: budget[0]])
        budget[0] -= done
        return done

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", limited)
        with pytest.raises(WriteError, match="No space left on device"):
            journal.append(STEPS[3])
    assert Trajectory.load(path) == RUN.prefix(3)
    for step in STEPS[3:]:
        journal.append(step)
    journal.close()
    assert Trajectory.load(path) == RUN


def test_the_disk_is_told_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    journal = Journal(tmp_path / "t", RUN.header(), 2, [])
    monkeypatch.setattr(os, "fsync", flushed.append)
    for n in range(60):
        journal.append(STEPS[n % 6])
    assert len(flushed) == 2
    journal.close()
    journal.close()
    assert len(flushed) == 3


def test_other_versions_are_refused(file: Path, scratch: Path) -> None:
    data = file.read_bytes()
    scratch.write_bytes(data[:7] + b"\x02" + data[8:])
    with pytest.raises(CheckpointError, match=r"scratch: journal of version 2, expected 1\. Update zoquant"):
        Trajectory.load(scratch)
    header = {"kind": "trajectory", **RUN.header(), "probes": 2, "noise_version": 9}
    scratch.write_bytes(encode_header(header))
    with pytest.raises(CheckpointError, match="scratch: trajectory of noise version 9, expected 1"):
        Trajectory.load(scratch)


def test_no_folder_to_write_to(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="cannot be written"):
        RUN.journal(tmp_path / "missing" / "t", 2)


def test_no_journal_is_written_that_none_would_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"70000 directions a step of 1 groups, expected at most 65536 in all"):
        RUN.prefix(0).journal(tmp_path / "t", 70_000)
    assert not list(tmp_path.iterdir())
