"""The header of any file is read right or refused with a CheckpointError, whatever its bytes are."""

import struct
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zoquant.backends.gguf.header import read_header
from zoquant.backends.gguf.types import TYPES
from zoquant.errors import CheckpointError

MEBIBYTE = 1 << 20


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def entry(key: str | bytes, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def tensor(name: str, shape: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    """Return a tensor's info; the shape is in the order of the file, fastest dimension first."""
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def file(*entries: bytes, tensors: tuple[bytes, ...] = (), data: int = 512, version: int = 3, align: int = 32) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(entries)) + b"".join(entries) + b"".join(tensors)
    return head + bytes(-len(head) % align) + bytes(data)


ARCH = entry("general.architecture", 8, string("llama"))
TINY = file(
    ARCH,
    entry("a.bool", 7, b"\x01"),
    entry("a.float", 6, struct.pack("<f", 0.5)),
    entry("a.strings", 9, struct.pack("<IQ", 8, 2) + string("one") + string("zwei")),
    entry("a.numbers", 9, struct.pack("<IQ3i", 5, 3, -1, 0, 7)),
    entry("a.nested", 9, struct.pack("<IQ", 9, 1) + struct.pack("<IQ2H", 2, 2, 3, 4)),
    tensors=(tensor("x", (32, 2), kind=2), tensor("y", (8,), offset=64)),
)


def read(tmp_path: Path, data: bytes) -> object:
    path = tmp_path / "file.gguf"
    path.write_bytes(data)
    return read_header(path)


def refused(tmp_path: Path, data: bytes) -> str:
    with pytest.raises(CheckpointError) as info:
        read(tmp_path, data)
    assert str(tmp_path / "file.gguf") in str(info.value)
    return str(info.value)


def test_types_are_those_of_gguf_py() -> None:
    assert {number: (kind.block, kind.nbytes) for number, kind in TYPES.items()} == dict(GGML_QUANT_SIZES)
    assert all(gguf.GGMLQuantizationType(number).name == kind.name for number, kind in TYPES.items())


def test_header_says_what_gguf_py_says(tmp_path: Path) -> None:
    path = tmp_path / "file.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    values = {"u8": 200, "i8": -3, "u16": 60000, "i16": -300, "u32": 4000000000, "i32": -70000, "u64": 1 << 60}
    writer.add_uint8("u8", 200)
    writer.add_int8("i8", -3)
    writer.add_uint16("u16", 60000)
    writer.add_int16("i16", -300)
    writer.add_uint32("u32", 4000000000)
    writer.add_int32("i32", -70000)
    writer.add_uint64("u64", 1 << 60)
    writer.add_float64("f64", 1 / 3)
    writer.add_bool("no", False)
    writer.add_string("text", "straße")
    writer.add_array("words", ["a", "", "ü"])
    writer.add_array("bools", [True, False])
    writer.add_tensor("matrix", np.ones((3, 4), dtype=np.float16))
    writer.add_tensor("blocks", np.zeros((2, 36), dtype=np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = read_header(path)
    assert header.architecture == "llama"
    assert {key: header.metadata[key] for key in values} == values
    assert (header.metadata["f64"], header.metadata["no"], header.metadata["text"]) == (1 / 3, False, "straße")
    assert header.metadata["words"] == ["a", "", "ü"]
    assert list(header.metadata["bools"]) == [True, False]
    for info in gguf.GGUFReader(path).tensors:
        mine = header.tensors[info.name]
        assert (mine.offset, mine.nbytes, mine.type.number) == (info.data_offset, info.n_bytes, info.tensor_type)
        assert mine.shape == tuple(int(length) for length in reversed(info.shape))


def test_tiny_file(tmp_path: Path) -> None:
    header = read(tmp_path, TINY)
    assert header.metadata["a.strings"] == ["one", "zwei"]  # type: ignore[attr-defined]
    assert list(header.metadata["a.numbers"]) == [-1, 0, 7]  # type: ignore[attr-defined]
    assert [list(values) for values in header.metadata["a.nested"]] == [[3, 4]]  # type: ignore[attr-defined]
    assert header.tensors["x"].shape == (2, 32)  # type: ignore[attr-defined]


def test_version_2_reads_as_version_3(tmp_path: Path) -> None:
    assert read(tmp_path, file(ARCH, version=2)).architecture == "llama"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "expected a GGUF file, got an empty file"),
        (b"GG", "This is not a GGUF file"),
        (b"PK\3\4" + bytes(64), r"expected b'GGUF', got b'PK\x03\x04'"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "expected a little-endian file, got a big-endian one"),
        (file(version=1), "expected GGUF version 2 or 3, got version 1"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "expected tensors that fit in a file of 24 bytes"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 40), "expected metadata keys that fit"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1 << 63) + bytes(9), "the name of metadata key 0"),
        (file(entry("k", 13, b"\0")), "key 'k': expected a value type from 0 to 12, got type 13"),
        (file(entry("k", 9, struct.pack("<IQ", 8, 1 << 50))), "key 'k': expected strings that fit"),
        (file(entry("k", 9, struct.pack("<IQ", 12, 1 << 61))), "key 'k': expected numbers that fit"),
        (file(entry("k", 9, struct.pack("<IQ", 14, 1))), "key 'k': expected an array of a value type from 0 to 12"),
        (file(entry("k", 9, struct.pack("<IQ", 8, 1) + struct.pack("<Q", 9999))), "key 'k': expected a string of 9999"),
        (file(entry("k", 9, struct.pack("<IQ", 9, 1) * 9 + struct.pack("<IQ", 0, 0))), "arrays in arrays 8 deep"),
        (file(entry("k", 8, string(b"\xff"))), "key 'k': expected UTF-8"),
        (file(entry("k", 9, struct.pack("<IQ", 8, 1) + string(b"\xff"))), "key 'k': expected UTF-8"),
        (file(entry(b"\xff", 7, b"\0")), "the name of metadata key 0: expected UTF-8"),
        (file(ARCH, ARCH), "key 'general.architecture': expected it once, got it twice"),
        (file(entry("general.alignment", 4, struct.pack("<I", 0))), "expected a power of two, got 0"),
        (file(entry("general.alignment", 4, struct.pack("<I", 48))), "expected a power of two, got 48"),
        (file(entry("general.alignment", 8, string("32"))), "expected a power of two, got '32'"),
        (file(tensors=(tensor("t", ()),)), "tensor 't': expected 1 to 4 dimensions, got 0"),
        (file(tensors=(tensor("t", (1,) * 5),)), "tensor 't': expected 1 to 4 dimensions, got 5"),
        (file(tensors=(tensor("t", (32, 0)),)), "tensor 't': expected dimensions above 0"),
        (file(tensors=(tensor("t", (1 << 62, 1 << 62)),)), "tensor 't': expected at most"),
        (file(tensors=(tensor("t", (33,), kind=2),)), "rows of a multiple of 32 numbers (Q4_0), got rows of 33"),
        (file(tensors=(tensor("t", kind=99),)), "got type 99"),
        (file(tensors=(tensor("t", kind=4),)), "got type 4"),
        (file(tensors=(tensor("t", offset=8),)), "expected an offset that is a multiple of 32, got offset 8"),
        (file(tensors=(tensor("t", offset=1 << 40),)), "The file is truncated"),
        (file(tensors=(tensor("t"), tensor("t", offset=128))), "tensor 't': expected it once, got it twice"),
        (file(tensors=(tensor("t"), tensor("u", offset=64))), "tensor 'u': expected an offset from"),
        (file(tensors=(tensor("t"), tensor("u"))), "where 't' ends"),
    ],
)
def test_a_broken_file_is_refused_with_its_reason(tmp_path: Path, data: bytes, message: str) -> None:
    assert message in refused(tmp_path, data)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        read_header(tmp_path / "absent.gguf")
    with pytest.raises(CheckpointError, match="cannot be read: Is a directory"):
        read_header(tmp_path)


def test_a_file_without_an_architecture_has_none(tmp_path: Path) -> None:
    header = read(tmp_path, file(entry("general.architecture", 4, bytes(4))))
    with pytest.raises(CheckpointError, match=r"'general\.architecture': expected a string, got 0"):
        header.architecture  # type: ignore[attr-defined]  # noqa: B018


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    needed = read(tmp_path, TINY).tensors["y"]  # type: ignore[attr-defined]
    for length in range(needed.offset + needed.nbytes):
        refused(tmp_path, TINY[:length])


def test_any_single_changed_byte_is_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.gguf"
    path.write_bytes(TINY)
    end = len(TINY) - 512
    with path.open("r+b", buffering=0) as stream:
        for position in range(end):
            for value in {0, 1, 127, 128, 255, TINY[position] ^ 1, TINY[position] ^ 64}:
                stream.seek(position)
                stream.write(bytes([value]))
                _read_or_refuse(path)
            stream.seek(position)
            stream.write(TINY[position : position + 1])
    assert path.read_bytes() == TINY


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_bytes_are_read_or_refused_in_little_memory(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "file.gguf"
    broken = bytearray(TINY)
    for _ in range(data.draw(st.integers(1, 6))):
        start = data.draw(st.integers(0, len(TINY) - 1))
        broken[start : start + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=12))
    path.write_bytes(bytes(broken))
    tracemalloc.start()
    try:
        _read_or_refuse(path)
        assert tracemalloc.get_traced_memory()[1] < MEBIBYTE
    finally:
        tracemalloc.stop()


def _read_or_refuse(path: Path) -> None:
    try:
        header = read_header(path)
    except CheckpointError as error:
        assert str(path) in str(error)  # noqa: PT017
        return
    for info in header.tensors.values():
        assert 0 < info.offset <= info.offset + info.nbytes <= header.size
