"""Checkpoint folders: what is read from headers, and what is refused."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from tests.folders import CONFIG, write_folder
from zoquant.checkpoint.folder import open_folder
from zoquant.checkpoint.folder.format import quantization_of
from zoquant.checkpoint.folder.libraries import is_installed
from zoquant.errors import CheckpointError
from zoquant.files.safetensors import read_safetensors

TENSORS = {
    "a.weight": torch.arange(12, dtype=torch.int32).view(3, 4),
    "b": torch.randn(5, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16),
    "c.f8": torch.tensor([[1.5, -2.0]]).to(torch.float8_e4m3fn),
    "empty": torch.empty(0, 3),
    "one": torch.tensor(2.5, dtype=torch.float16),
}


@pytest.mark.parametrize("shards", [1, 3])
def test_tensors_are_read_as_stored(tmp_path: Path, shards: int) -> None:
    folder = open_folder(write_folder(tmp_path / "a", TENSORS, shards=shards))
    assert set(folder.tensors) == set(TENSORS)
    for name, tensor in TENSORS.items():
        got = folder.read(name)
        assert got.dtype == tensor.dtype
        assert got.shape == tensor.shape
        assert got.reshape(-1).view(torch.uint8).tolist() == tensor.reshape(-1).view(torch.uint8).tolist()
    assert folder.config["model_type"] == "llama"
    assert folder.bytes == sum(file.stat().st_size for file in (tmp_path / "a").glob("*.safetensors"))


def test_spans_name_the_bytes(tmp_path: Path) -> None:
    folder = open_folder(write_folder(tmp_path / "a", TENSORS, shards=2))
    span = folder.span("a.weight", "scale")
    raw = (tmp_path / "a" / span.file).read_bytes()[span.offset : span.offset + 48]
    assert raw == TENSORS["a.weight"].numpy().tobytes()
    assert (span.shape, span.strides, span.dtype) == ((3, 4), (16, 4), torch.int32)


def test_quantize_config_of_older_libraries(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "a", TENSORS)
    (path / "quantize_config.json").write_text('{"bits": 4, "quant_method": "awq"}')
    assert open_folder(path).quantization == {"bits": 4, "quant_method": "awq"}


@pytest.mark.parametrize(
    ("file", "said", "expected"),
    [
        ("quantize_config.json", {"bits": 4}, {"bits": 4, "quant_method": "gptq"}),
        ("quantize_config.json", {"per_channel": True}, {"per_channel": True}),
        ("hf_quant_config.json", {"quantization": {}}, {"quantization": {}, "quant_method": "modelopt"}),
        ("config.json", {"compression_config": {"a": 1}}, {"a": 1}),
        ("config.json", {"compression_config": {"a": 1}, "quantization_config": {"b": 2}}, {"b": 2}),
        ("config.json", {"compression_config": "no"}, {}),
    ],
)
def test_where_the_quantization_is_described(
    tmp_path: Path, file: str, said: dict[str, Any], expected: dict[str, Any]
) -> None:
    path = write_folder(tmp_path / "a", TENSORS)
    (path / file).write_text(json.dumps(said))
    assert open_folder(path).quantization == quantization_of(path) == expected


def header(entries: Any, data: bytes = b"", length: int | None = None) -> bytes:
    raw = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


BAD = {
    "empty file": (b"", "header"),
    "length beyond the file": (header({}, length=1 << 40), r"a length of 1099511627776"),
    "no JSON": (header(b"{{{{"), "a JSON object"),
    "no object": (header([]), "a JSON object"),
    "deep": (header(b"[" * 100_000), "a JSON object"),
    "twice": (header(b'{"a":{},"a":{}}'), "a name stands there twice"),
    "no entry": (header({"a": 3}), "an object"),
    "dtype": (header({"a": entry("F3")}, bytes(8)), "a dtype of"),
    "shape": (header({"a": entry(shape=[-2])}, bytes(8)), "a shape and two offsets"),
    "huge shape": (header({"a": entry(shape=[1 << 61, 1 << 61])}, bytes(8)), "bytes within 8 of data"),
    "bool": (header({"a": entry(shape=[True, 2])}, bytes(8)), "a shape and two offsets"),
    "beyond": (header({"a": entry()}, bytes(7)), "within 7 of data"),
    "size": (header({"a": entry(offsets=[0, 4])}, bytes(4)), "8 bytes within 4"),
    "overlap": (header({"a": entry(), "b": entry()}, bytes(16)), "data at byte"),
    "gap": (header({"a": entry(offsets=[8, 16])}, bytes(16)), "data at byte"),
    "tail": (header({"a": entry()}, bytes(9)), "as the header says"),
    "metadata": (header({"__metadata__": {"a": 1}}), "an object of strings"),
}


@pytest.mark.parametrize("case", BAD)
def test_damaged_headers(tmp_path: Path, case: str) -> None:
    data, message = BAD[case]
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        read_safetensors(tmp_path / "x.safetensors")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_any_damage_is_one_clear_error(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "x.safetensors"
    save_file(TENSORS, path)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    try:
        tensors, _ = read_safetensors(path)
    except CheckpointError:
        return
    assert all(tensor.offset + tensor.nbytes <= path.stat().st_size for tensor in tensors.values())


def rewritten(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        file = path / "model.safetensors.index.json"
        index = json.loads(file.read_text())
        change(index["weight_map"])
        file.write_text(json.dumps(index))

    return damage


FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing shard": (lambda path: next(path.glob("*-00002-*")).unlink(), r"expected the shard model-00002-of-00002"),
    "escape": (
        rewritten(lambda names: names.update(b="../x.safetensors")),
        r"'b': expected the name of a file",
    ),
    "absolute": (rewritten(lambda names: names.update(b="/etc/passwd")), r"expected the name of a file in this folder"),
    "too long": (rewritten(lambda names: names.update(b="x" * 256)), r"'b': expected the name of a file"),
    "unprintable": (rewritten(lambda names: names.update(b="a\0\ud800")), r"'b': expected the name of a file"),
    "not there": (rewritten(lambda names: names.update(z=names["b"])), r"'z': expected it in model-"),
    "no map": (lambda path: (path / "model.safetensors.index.json").write_text("{}"), r"'weight_map'"),
    "no object": (lambda path: (path / "config.json").write_text("[]"), r"expected a JSON object, got \[\]"),
    "no JSON": (lambda path: (path / "config.json").write_text("{"), r"expected JSON, got Expecting property name"),
    "twice": (
        lambda path: save_file({name: TENSORS[name] for name in TENSORS}, next(path.glob("*-00001-*"))),
        r"expected it once, got it from",
    ),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_damaged_folders(tmp_path: Path, case: str) -> None:
    path = write_folder(tmp_path / "a", TENSORS, shards=2)
    damage, message = FOLDERS[case]
    damage(path)
    with pytest.raises(CheckpointError, match=message):
        open_folder(path)


def test_no_file_or_several(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "a", TENSORS)
    (path / "model.safetensors").rename(path / "one.safetensors")
    assert set(open_folder(path).tensors) == set(TENSORS)
    save_file(TENSORS, path / "two.safetensors")
    with pytest.raises(CheckpointError, match=r"got one\.safetensors, two\.safetensors"):
        open_folder(path)
    for file in path.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(CheckpointError, match=r"got no such file"):
        open_folder(path)


@pytest.mark.parametrize("index", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_a_whole_file_goes_before_an_index_that_was_left_behind(tmp_path: Path, index: str) -> None:
    path = write_folder(tmp_path / "a", TENSORS)
    (path / index).write_text(json.dumps({"weight_map": dict.fromkeys(TENSORS, "model-00001-of-00002.safetensors")}))
    assert set(open_folder(path).tensors) == set(TENSORS)
    (path / "model.safetensors").unlink()
    torch.save(TENSORS, path / "pytorch_model.bin")
    if index.startswith("pytorch"):
        assert set(open_folder(path).tensors) == set(TENSORS)
    else:
        with pytest.raises(CheckpointError, match=r"expected the shard model-00001-of-00002"):
            open_folder(path)


def test_expect(tmp_path: Path) -> None:
    folder = open_folder(write_folder(tmp_path / "a", TENSORS, config=CONFIG))
    assert folder.expect("b", (5,), [torch.bfloat16]).shape == (5,)
    with pytest.raises(CheckpointError, match=r"'b': expected \[4\] of float16, got \[5\] of bfloat16"):
        folder.expect("b", (4,), [torch.float16])
    with pytest.raises(CheckpointError, match=r"'z': expected a tensor of this name, got none"):
        folder.tensor("z")


@pytest.mark.parametrize("inner", [False, True])
def test_a_module_of_a_library_may_lack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inner: bool) -> None:
    """As optimum.quanto, where optimum is there, or is not. Nothing is imported to know it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not is_installed("some_library")
    assert not is_installed("some_library.part")
    (tmp_path / "some_library").mkdir()
    (tmp_path / "some_library" / "__init__.py").write_text("raise RuntimeError")
    if inner:
        (tmp_path / "some_library" / "part.py").write_text("raise RuntimeError")
    importlib.invalidate_caches()
    assert is_installed("some_library")
    assert is_installed("some_library.part") == inner
    assert not is_installed("some_library.part.more")
