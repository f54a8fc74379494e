"""Files of torch.save: what they hold is found where it lies, and nothing of them is run."""

import contextlib
import io
import os
import pickle
import time
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from zoquant.errors import CheckpointError
from zoquant.files.archive import read_archive
from zoquant.files.plain_pickle import MAX_STACK, RefusedPickleError, read_plain
from zoquant.files.zipped import read_members
from zoquant.testing.tensors import same_bits

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.uint16, torch.float8_e4m3fn,
]  # fmt: skip


def saved(folder: Path, content: Any, **options: Any) -> Path:
    torch.save(content, folder / "a.pt", **options)
    return folder / "a.pt"


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(tmp_path: Path, dtype: torch.dtype, protocol: int) -> None:
    tensor = torch.arange(30).view(5, 6).to(dtype)
    found, values = read_archive(saved(tmp_path, {"a": tensor, "b": tensor[2:4], "s": 3}, pickle_protocol=protocol))
    assert torch.equal(found["a"].read().view(torch.uint8), tensor.view(torch.uint8))
    assert torch.equal(found["b"].read().view(torch.uint8), tensor[2:4].view(torch.uint8))
    assert values == {"s": 3}


def test_the_state_of_a_module(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    found, values = read_archive(saved(tmp_path, module.state_dict()))
    assert list(found) == list(module.state_dict())
    assert values == {}
    assert all(same_bits(found[name].read(), value) for name, value in module.state_dict().items())


def test_nested_dicts_and_plain_values(tmp_path: Path) -> None:
    plain = {"n": 4, "big": 2**40, "f": 1.5, "t": True, "none": None, "dtype": torch.uint8, "list": [1, "x"]}
    shape = {"shape": torch.Size([2, 3]), "pair": (1, 2), "word": "4bit_u8"}
    weight = nn.Parameter(torch.ones(2, 3), requires_grad=False)
    found, values = read_archive(saved(tmp_path, {"m.q": {"w": weight, "meta": OrderedDict(shape), **plain}}))
    assert same_bits(found["m.q.w"].read(), weight.data)
    assert values == {f"m.q.{k}": v for k, v in plain.items()} | {f"m.q.meta.{k}": v for k, v in shape.items()}


def test_scalars_and_empty_tensors(tmp_path: Path) -> None:
    found, _ = read_archive(saved(tmp_path, {"scalar": torch.tensor(2.5), "empty": torch.empty(0, 4)}))
    assert found["scalar"].read() == 2.5
    assert found["empty"].read().shape == (0, 4)


def test_places_of_checksums(tmp_path: Path) -> None:
    path = saved(tmp_path, {"a": torch.arange(1000.0)})
    data = path.read_bytes()
    for member in read_members(path).values():
        crc = zlib.crc32(data[member.start : member.start + member.size])
        assert len(member.crc_places) == 2
        assert all(int.from_bytes(data[at : at + 4], "little") == crc for at in member.crc_places)


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (Call(os.system, "touch was-run"), "the name 'posix.system'"),
        (Call(eval, "1"), "the name '__builtin__.eval'"),
        (Call(getattr, "text", "format"), "the name '__builtin__.getattr'"),
        (nn.Linear(2, 2), "the name 'torch.nn.modules.linear.Linear'"),
        ({1: torch.ones(2)}, "a dict whose keys are no strings"),
        ({"a": {"b": {"c": {"d": {"e": {"f": 1}}}}}}, "a dict within itself, twice, or too deep"),
        ({"a": {1, 2}}, "the name '__builtin__.set'"),
        ({"a": b"bytes"}, "the name '_codecs.encode'"),
        ({"a": 1j}, "the name '__builtin__.complex'"),
        ({"a": 1 << 3000}, "the instruction LONG4"),
    ],
)
def test_anything_but_tensors_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        read_archive(saved(tmp_path, content))
    assert text in str(caught.value)
    assert "Nothing of it was run" in str(caught.value)
    assert not (tmp_path / "was-run").exists()


def test_a_dict_in_two_places_is_refused(tmp_path: Path) -> None:
    """Else a small file could stand for more names than memory holds."""
    inner = {f"{n}": 0 for n in range(100)}
    with pytest.raises(CheckpointError, match="within itself, twice"):
        read_archive(saved(tmp_path, {"a": inner, "b": inner}))


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "pickle"),
        (b".", "damaged"),
        (b"\x80\x02}", "damaged|without an end"),
        (b"\x80\x02(.", "a mark where a value belongs"),
        (b"\x80\x02}}s.", "damaged"),
        (b"\x80\x02}u.", "no mark"),
        (b"\x80\x02N\x85R.", "damaged"),
        (b"\x80\x02NNR.", "a call of something that is no tensor"),
        (b"\x80\x02ccollections\nOrderedDict\nN\x85R.", "damaged"),
        (b"\x80\x02" + b"N" * (MAX_STACK + 1) + b".", "values at once"),
        (b"\x80\x02r\xff\xff\xff\x7f.", "damaged"),
        (b"\x80\x02h\x05.", "damaged"),
        (b"\x80\x02X\xff\xff\xff\x7fab.", "damaged"),
        (b"\x80\x02NQ.", "a persistent id that is no storage"),
        (b"\x80\x02)Q.", "damaged"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "the name 'os.system'"),
        (b"\x80\x02\x82\x01.", "the instruction EXT1"),
        (b"\x80\x02c__builtin__\neval\n.", "the name '__builtin__.eval'"),
        (b"cos\nsystem\n(S'true'\ntR.", "the name 'os.system'"),
        (b"(S'true'\nios\nsystem\n.", "the instruction STRING"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.", "damaged"),
    ],
)
def test_hostile_pickles(data: bytes, text: str) -> None:
    with pytest.raises(RefusedPickleError, match=text):
        read_plain(data)


A = b"\x8c\x01a"
DOUBLED = A + b"".join(b"\x94h" + bytes([n]) + b"\x86" for n in range(60))
"""A tuple of the last two, sixty times: 2**60 parts for whoever looks at all of them."""
LIST = b"]\x94(" + b"K\x01" * 60_000 + b"e"


@pytest.mark.parametrize(
    "data",
    [
        A + DOUBLED[3:] + b"\x94h\x3c\x93.",
        b"\x8c\x05torch" + DOUBLED + b"\x93.",
        DOUBLED + b"\x8c\x05torch\x93.",
        b"ccollections\nOrderedDict\n" + DOUBLED + b"\x85R.",
        b"}" + DOUBLED + b"K\x01s.",
        DOUBLED + b"Q.",
        b"(" + DOUBLED + b"ctorch\nFloatStorage\n\x8c\x010\x8c\x03cpuK\x01tQ.",
        b"(\x8c\x07storage" + DOUBLED + b"\x8c\x010\x8c\x03cpuK\x01tQ.",
        b"(\x8c\x07storagectorch\nFloatStorage\n" + DOUBLED + b"\x8c\x03cpuK\x01tQ.",
        b"(\x8c\x07storagectorch\nFloatStorage\n\x8c\x010\x8c\x03cpu" + DOUBLED + b"tQ.",
        b"ctorch\nSize\n" + DOUBLED + b"\x85R.",
        b"ctorch._utils\n_rebuild_parameter\n" + DOUBLED + b"\x85R.",
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + 6 * (DOUBLED + b"0h\x3b") + b"tR.",
        b"ctorch\nSize\n" + LIST + b"\x85R.",
        b"ccollections\nOrderedDict\n(" + b"N" * 60_000 + b"tR.",
        b"X\x00\x00\x10\x00" + b"m" * (1 << 20) + A + b"\x93.",
    ],
)
def test_pickles_that_would_take_for_ever(data: bytes) -> None:
    """Nothing looks at all parts of what a few bytes may stand for, and no error prints it."""
    start = time.process_time()
    with pytest.raises(RefusedPickleError) as refused:
        read_plain(b"\x80\x04" + data)
    assert len(str(refused.value)) < 300
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"}" + A + DOUBLED + b"s.", "lists without an end"),
        (b"}(" + A + LIST + b"".join(b"\x8c\x02%02dh\x00" % n for n in range(60)) + b"u.", "lists without an end"),
        (b"}X\x00\x10\x00\x00" + b"k" * 4096 + b"Ns.", "a name of 4096 characters, expected at most 512"),
        (b"}(\x8c\x03a.bN" + A + b"}\x8c\x01bNsu.", "two values of one name, 'a.b'"),
    ],
)
def test_dicts_that_would_take_for_ever(tmp_path: Path, data: bytes, text: str) -> None:
    path = saved(tmp_path, {"a": 1})
    rewritten(path, lambda name, old: b"\x80\x04" + data if name.endswith("data.pkl") else old)
    start = time.process_time()
    with pytest.raises(CheckpointError, match=text):
        read_archive(path)
    assert time.process_time() - start < 2


@pytest.mark.parametrize("place", [1 << 63, (1 << 64) - 1, 1 << 62, 1 << 32])
@pytest.mark.parametrize(("record", "offset"), [(b"PK\x06\x07", 8), (b"PK\x06\x06", 48), (b"PK\x06\x06", 32)])
def test_a_zip64_directory_that_lies_nowhere(tmp_path: Path, record: bytes, offset: int, place: int) -> None:
    path = saved(tmp_path, {"a": torch.arange(5.0)})
    data = bytearray(path.read_bytes())
    at = data.rindex(record) + offset
    data[at : at + 8] = place.to_bytes(8, "little")
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"a\.pt: expected .* Get the file again"):
        read_archive(path)


@pytest.mark.parametrize("place", [1 << 63, (1 << 64) - 1, 1 << 40])
def test_a_zip64_member_that_lies_nowhere(tmp_path: Path, place: int) -> None:
    """The offset of a member is 64 bits wide in a field of its own where 32 do not hold it."""
    path = saved(tmp_path, {"a": torch.arange(5.0)})
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")
    name = int.from_bytes(data[at + 28 : at + 30], "little")
    data[at + 30 : at + 32] = (12).to_bytes(2, "little")
    data[at + 42 : at + 46] = b"\xff" * 4
    data[at + 46 + name : at + 46 + name + 12] = (
        (1).to_bytes(2, "little") + (8).to_bytes(2, "little") + place.to_bytes(8, "little")
    )
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="a record at byte"):
        read_archive(path)


def rewritten(path: Path, change: Any, **options: Any) -> Path:
    """Write an archive again, its members changed by `change(name, bytes)`."""
    members = zipfile.ZipFile(io.BytesIO(path.read_bytes()))
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name in members.namelist():
            archive.writestr(name, change(name, members.read(name)))
    return path


def test_archives_of_other_programs_are_read(tmp_path: Path) -> None:
    path = rewritten(saved(tmp_path, {"a": torch.arange(5.0)}), lambda name, data: data)
    found, _ = read_archive(path)
    assert same_bits(found["a"].read(), torch.arange(5.0))
    assert {len(member.crc_places) for member in read_members(path).values()} == {2}


def test_compressed_members_are_refused(tmp_path: Path) -> None:
    path = rewritten(
        saved(tmp_path, {"a": torch.zeros(10_000)}), lambda _, data: data, compression=zipfile.ZIP_DEFLATED
    )
    with pytest.raises(CheckpointError, match="stored as it is"):
        read_archive(path)


@pytest.mark.parametrize(
    ("member", "change", "text"),
    [
        ("byteorder", lambda _: b"big", "expected little-endian numbers, got 'big'"),
        ("data/0", lambda data: data[:-4], "expected a storage of 20 bytes, got 16"),
        ("data.pkl", lambda data: data.replace(b"FloatStorage", b"ByteStorage\n"), "refused: its pickle holds"),
    ],
)
def test_members_that_lie(tmp_path: Path, member: str, change: Any, text: str) -> None:
    path = saved(tmp_path, {"a": torch.arange(5.0)})
    rewritten(path, lambda name, data: change(data) if name.endswith(member) else data)
    with pytest.raises(CheckpointError, match=text):
        read_archive(path)


class Lie:
    """Pickles as a tensor that says another shape than its storage has."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __reduce__(self) -> Any:
        from torch._utils import _rebuild_tensor_v2

        make: Any = torch.TypedStorage
        storage = make(list(range(6)), dtype=torch.float32)
        return _rebuild_tensor_v2, (storage, *self.arguments, False, OrderedDict())


@pytest.mark.filterwarnings("ignore:TypedStorage")
@pytest.mark.parametrize(
    ("start", "shape", "strides", "text"),
    [
        (0, (7,), (1,), "expected at most 24 bytes, got 28 at byte 0"),
        (5, (2,), (1,), "expected at most 24 bytes, got 8 at byte 20"),
        (-1, (2,), (1,), "expected a shape and a place"),
        (0, (-1,), (1,), "expected a shape and a place"),
        (0, (2, 3), (1, 2), "expected a contiguous tensor"),
        (0, (6,), (0,), "expected a contiguous tensor"),
        (0, (1 << 61, 1 << 61), (1 << 61, 1), "expected at most 24 bytes"),
        (0, (2,), (1, 1), "a tensor without a storage, a shape and strides"),
        (0, "ab", (1, 1), "a tensor without a storage, a shape and strides"),
    ],
)
def test_tensors_that_lie(tmp_path: Path, start: int, shape: Any, strides: Any, text: str) -> None:
    with pytest.raises(CheckpointError, match=text):
        read_archive(saved(tmp_path, {"a": Lie(start, shape, strides)}))


def test_a_file_of_old_torch_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, {"a": torch.ones(3)}, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"torch before 1\.6"):
        read_archive(path)


def test_every_cut_is_refused(tmp_path: Path) -> None:
    data = saved(tmp_path, {"a": torch.arange(5.0)}).read_bytes()
    for length in range(0, len(data), 7):
        (tmp_path / "cut.pt").write_bytes(data[:length])
        with pytest.raises(CheckpointError):
            read_archive(tmp_path / "cut.pt")


SMALL = io.BytesIO()
torch.save({"m": {"a": torch.arange(5.0), "n": 4, "s": torch.Size([5])}}, SMALL)


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_damaged_files_raise_one_error(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = bytearray(SMALL.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.pt"
    path.write_bytes(content)
    try:
        found, _ = read_archive(path)
        for tensor in found.values():
            tensor.read()
    except CheckpointError:
        pass


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_damaged_pickles_raise_one_error(data: st.DataObject) -> None:
    buffer = io.BytesIO()
    pickle.dump({"a": [1, 2.5, "x", None, True, (1, 2)], "b": {"c": OrderedDict()}}, buffer, 2)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(RefusedPickleError):
        read_plain(bytes(content))
