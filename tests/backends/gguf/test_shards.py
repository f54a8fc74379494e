"""A model in several files: any shard stands for all, and what is wrong with one of them is said by its name."""

import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

import zoquant
from tests.backends.gguf.files import TinyFile
from tests.backends.gguf.models import logits, tiny
from tests.tiny import write_checkpoint
from zoquant.backends.gguf.format import GGUFFormat
from zoquant.backends.gguf.header import read_header
from zoquant.backends.gguf.shards import read_model, shard_paths
from zoquant.checkpoint.inspection import inspect
from zoquant.errors import CheckpointError
from zoquant.native import QuantLinear
from zoquant.testing import FORMAT_CHECKS, FormatCase

TYPES = ("Q4_0", "Q6_K", "F16", "Q4_K")


def sharded(folder: Path, count: int = 5) -> Path:
    return TinyFile("llama", tiny("llama"), types=TYPES, tensors_a_shard=count).write(folder / "tiny.gguf")


def whole(folder: Path) -> Path:
    return TinyFile("llama", tiny("llama"), types=TYPES).write(folder / "whole.gguf")


@pytest.mark.parametrize("check", FORMAT_CHECKS.values(), ids=FORMAT_CHECKS)
def test_shards_conform(tmp_path: Path, check: zoquant.testing.Check[FormatCase]) -> None:
    path = TinyFile("llama", tiny("llama", num_hidden_layers=1), types="Q4_1", tensors_a_shard=6)
    check.run(FormatCase(path.write(tmp_path / "tiny.gguf"), GGUFFormat(), torch.float32, steps=3))


def test_any_shard_stands_for_all(tmp_path: Path) -> None:
    first, single = sharded(tmp_path), whole(tmp_path)
    shards = sorted(tmp_path.glob("tiny-*.gguf"))
    assert len(shards) == 5
    assert first == shards[0]
    expected, _ = zoquant.load(single, compute_dtype=torch.float32)
    keys = set(GGUFFormat().index(single))
    for shard in shards:
        assert shard_paths(shard) == shards
        index = GGUFFormat().index(shard)
        assert set(index) == keys
        assert {span.file for span in index.values()} == {path.name for path in shards}
        model, _ = zoquant.load(shard, compute_dtype=torch.float32)
        assert torch.equal(logits(model), logits(expected))


def test_inspect_counts_all_shards(tmp_path: Path) -> None:
    shards, single = inspect(sharded(tmp_path)), inspect(whole(tmp_path))
    assert shards["bytes"] == sum(path.stat().st_size for path in tmp_path.glob("tiny-*.gguf"))
    for key in ("layers", "parameters", "types", "views", "architecture", "notes"):
        assert shards[key] == single[key]


def test_an_export_writes_every_shard_and_moves_what_the_delta_moves(tmp_path: Path) -> None:
    path = sharded(tmp_path)
    shards = shard_paths(path)
    before = {shard.name: shard.read_bytes() for shard in shards}
    model, _ = zoquant.load(path, compute_dtype=torch.float32)
    views = zoquant.attach(model, include="*.layers.1.*")
    views.add(7, 0.3, "gaussian")
    views.write()
    zoquant.save_delta(tmp_path / "delta", views)
    tuned = zoquant.export(shards[2], delta=tmp_path / "delta", out=tmp_path / "out")
    assert tuned == tmp_path / "out" / shards[2].name
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == sorted(before)
    assert {shard.name: shard.read_bytes() for shard in shards} == before
    moved = {name for name, data in before.items() if (tmp_path / "out" / name).read_bytes() != data}
    index = GGUFFormat().index(path)
    assert moved == {index[key].file for key in views.keys} < set(before)
    again, _ = zoquant.load(tuned, compute_dtype=torch.float32)
    assert torch.equal(logits(again), logits(model))


def test_the_reader_of_gguf_finds_the_trained_values_in_the_exported_shards(tmp_path: Path) -> None:
    path = sharded(tmp_path)
    model, _ = zoquant.load(path, compute_dtype=torch.float32)
    views = zoquant.attach(model)
    views.add(1, 0.2, "rademacher")
    views.write()
    zoquant.save_delta(tmp_path / "delta", views)
    tuned = zoquant.export(path, delta=tmp_path / "delta", out=tmp_path / "out")
    found = {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        for shard in shard_paths(tuned)
        for tensor in gguf.GGUFReader(shard).tensors
    }
    checked = 0
    for key, span in GGUFFormat().index(tuned).items():
        module = model.get_submodule(key.rpartition(".")[0])
        if key.endswith(".d") and isinstance(module, QuantLinear) and not key.endswith(("q_proj.d", "k_proj.d")):
            np.testing.assert_allclose(found[span.tensor], module.packed.dequantize(), rtol=1e-5, atol=1e-7)
            checked += 1
    assert checked == 8


def set_key(path: Path, key: str, value: int) -> None:
    reader = gguf.GGUFReader(path, "r+")
    reader.fields[key].parts[reader.fields[key].data[0]][0] = value
    del reader


def remove(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def rename(path: Path) -> None:
    path.rename(path.with_name("elsewhere.gguf"))


@pytest.mark.parametrize(
    ("number", "damage", "message"),
    [
        (2, remove, r"tiny-00003-of-00005\.gguf: shard 3 of 5: expected a file, got none"),
        (4, remove, r"tiny-00005-of-00005\.gguf: shard 5 of 5: expected a file, got none"),
        (3, cut, r"tiny-00004-of-00005\.gguf: tensor .* truncated"),
        (1, lambda path: set_key(path, "split.no", 3), r"tiny-00002-of-.*'split\.no': expected 1, got 3"),
        (1, lambda path: set_key(path, "split.count", 4), r"tiny-00002-of-.*'split\.count': expected 5, got 4"),
        (0, lambda path: set_key(path, "split.tensors.count", 9), r"'split\.tensors\.count': expected 21, .* got 9"),
        (1, lambda path: shutil.copy(path.with_name("tiny-00003-of-00005.gguf"), path), r"tiny-00002-.*'split\.no'"),
    ],
)
def test_a_damaged_shard_is_named(tmp_path: Path, number: int, damage: Callable[[Path], object], message: str) -> None:
    path = sharded(tmp_path)
    damage(shard_paths(path)[number])
    for action in (GGUFFormat().index, GGUFFormat().summarize, zoquant.load):
        with pytest.raises(CheckpointError, match=message):
            action(path)


def test_a_shard_of_another_name(tmp_path: Path) -> None:
    path = sharded(tmp_path)
    other = path.rename(tmp_path / "model.gguf")
    with pytest.raises(CheckpointError, match=r"model\.gguf.*ends in -00001-of-00005\.gguf"):
        read_model(other)


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    path = sharded(tmp_path)
    shards = shard_paths(path)
    name = next(iter(read_header(shards[1]).tensors))
    data = shards[2].read_bytes()
    other = next(other for other in read_header(shards[2]).tensors if len(other) == len(name))
    shards[2].write_bytes(data.replace(other.encode(), name.encode(), 1))
    with pytest.raises(CheckpointError, match=f"'{name}': expected it once, got it in .*00002-of-00005"):
        read_model(path)


def test_a_first_shard_without_tensors(tmp_path: Path) -> None:
    """As `llama-gguf-split --no-tensor-first-split` writes it."""
    single = whole(tmp_path)
    data = bytearray(single.read_bytes())
    shard = tmp_path / "m-00002-of-00002.gguf"
    model = tiny("llama")

    def split(number: int) -> Callable[[gguf.GGUFWriter], None]:
        def edit(writer: gguf.GGUFWriter) -> None:
            writer.add_uint16("split.no", number)
            writer.add_uint16("split.count", 2)
            writer.add_int32("split.tensors.count", 21)

        return edit

    TinyFile("llama", model, types=TYPES, edit=split(1)).write(shard)
    tensors = list(TinyFile("llama", model).tensors())
    first = TinyFile("llama", model, skip=tensors, edit=split(0)).write(tmp_path / "m-00001-of-00002.gguf")
    assert not read_header(first).tensors
    expected, _ = zoquant.load(single, compute_dtype=torch.float32)
    assert bytes(data) == single.read_bytes()
    for path in (first, shard):
        got, _ = zoquant.load(path, compute_dtype=torch.float32)
        assert torch.equal(logits(got), logits(expected))


def test_the_tokenizer_of_the_first_shard(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "tiny.gguf", tensors_a_shard=4)
    _, tokenizer = zoquant.load(shard_paths(path)[-1], compute_dtype=torch.float32)
    assert tokenizer.decode(tokenizer("good")["input_ids"]) == "good"
