"""The delta file: its bytes, its base, and what is refused."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from tests.toy import ToyModel, stored, toy_model
from zoquant import Views, attach, load_delta, save_delta
from zoquant.errors import BaseMismatchError, CheckpointError, ShapeError, ValueRangeError
from zoquant.files.atomic_files import load_tensors
from zoquant.record.delta import Delta, read_delta
from zoquant.testing.tensors import same_bits

GOLDEN = (
    b"\xb8\x00\x00\x00\x00\x00\x00\x00"
    b'{"__metadata__":{"zoquant":"{\\"base\\":{\\"d\\":\\"6d684c24f000d92a\\"},\\"kind\\":\\"de'
    b'lta\\",\\"space\\":\\"relative\\",\\"version\\":1}"},"d":{"dtype":"F32","shape":[4,1],"'
    b'data_offsets":[0,16]}}  '
    b"\x00\x00\x00?\x00\x00\x80\xbe\x00\x00\x00\x00\x00\x00\x00@"
)


def moved(model: ToyModel) -> Views:
    views = attach(model, roles=("scale", "zero"))
    views.add(3, 0.0625, "rademacher")
    views.write()
    return views


def bits(views: Views) -> dict[str, Tensor]:
    return {view.name: view.read() for view in views}


def rewrite(path: Path, change: dict[str, Any] | None = None, tensors: Mapping[str, Tensor] | None = None) -> None:
    """Write a delta file again with other metadata or other tensors."""
    metadata = load_tensors(path, "delta")[1]
    values = {**safetensors.torch.load_file(path), **(tensors or {})}
    text = json.dumps({**metadata, **(change or {})})
    path.write_bytes(safetensors.torch.save(values, {"zoquant": text}))


@pytest.fixture
def file(tmp_path: Path, model: ToyModel) -> Path:
    path = tmp_path / "delta.safetensors"
    save_delta(path, moved(model))
    return path


def test_golden_bytes(tmp_path: Path) -> None:
    """What old versions wrote stays readable: neither header, nor order, nor fingerprint ever change."""
    layer = toy_model(layers=1, rows=4).layers["l0"]
    views = attach(layer)
    views.set_delta({"d": torch.tensor([[0.5], [-0.25], [0.0], [2.0]])})
    path = tmp_path / "delta.safetensors"
    save_delta(path, views)
    assert path.read_bytes() == GOLDEN


def test_saved_and_loaded(file: Path, model: ToyModel) -> None:
    fresh = attach(toy_model(), roles=("scale", "zero"))
    load_delta(str(file), fresh)
    expected = attach(model, roles=("scale", "zero"))
    assert fresh.space == "relative"
    for view, other in zip(fresh, expected, strict=True):
        assert same_bits(view.read(), other.read())


def test_the_same_views_give_the_same_bytes(file: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.safetensors"
    save_delta(again, moved(toy_model()))
    assert again.read_bytes() == file.read_bytes()


def test_the_order_of_layers_does_not_matter(file: Path, tmp_path: Path) -> None:
    other = moved(toy_model(order=(2, 0, 1)))
    again = tmp_path / "again.safetensors"
    save_delta(again, other)
    assert again.read_bytes() == file.read_bytes()


def test_a_load_replaces_what_was_there(file: Path) -> None:
    fresh, used = (attach(toy_model(), roles=("scale", "zero")) for _ in range(2))
    used.space = "absolute"
    used.add(9, 0.5, "gaussian")
    used.write()
    load_delta(file, fresh)
    load_delta(file, used)
    assert all(same_bits(a.read(), b.read()) for a, b in zip(fresh, used, strict=True))


def test_views_that_the_file_does_not_name_go_to_their_base(tmp_path: Path) -> None:
    path = tmp_path / "scales.safetensors"
    save_delta(path, attach(toy_model()))
    views = moved(toy_model())
    load_delta(path, views)
    assert all(same_bits(view.read(), views.base(view.name)) for view in views)


def test_another_base_is_refused_by_its_first_key(file: Path) -> None:
    other = toy_model()
    stored(other, "l1", "m")[3, 1] += 0.5
    views = attach(other, roles=("scale", "zero"))
    before = bits(views)
    with pytest.raises(BaseMismatchError) as caught:
        load_delta(file, views)
    here, there = views.fingerprints()["layers.l1.m"], read_delta(file).base["layers.l1.m"]
    assert str(caught.value) == (
        f"{file}: made on another base: layers.l1.m has fingerprint {here}, expected {there}. Use the checkpoint that "
        "the training started from."
    )
    assert all(same_bits(view.read(), before[view.name]) for view in views)


def test_fewer_views_than_the_file_has_are_refused(file: Path) -> None:
    with pytest.raises(BaseMismatchError) as caught:
        load_delta(file, attach(toy_model()))
    assert str(caught.value) == (
        f"{file}: made for layers.l0.m, which does not exist here, where keys are such as layers.l0.d. "
        "Attach the same model with the same roles, include and exclude."
    )


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"version": 2}, CheckpointError, "delta of version 2, expected 1. Update zoquant."),
        ({"version": None}, CheckpointError, "delta of version None, expected 1. Update zoquant."),
        ({"kind": "trajectory"}, CheckpointError, "expected a zoquant delta, got a trajectory."),
        ({"space": "log"}, CheckpointError, "the header does not name space and base of every tensor. Is the file"),
        ({"space": ["x"]}, CheckpointError, "the header does not name space and base of every tensor. Is the file"),
        ({"base": {}}, CheckpointError, "the header does not name space and base of every tensor. Is the file whole"),
        ({"base": 5}, CheckpointError, "the header does not name space and base of every tensor. Is the file whole"),
    ],
)
def test_headers_are_checked(file: Path, change: dict[str, Any], error: type[Exception], text: str) -> None:
    rewrite(file, change)
    refused(file, error, text)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (
            torch.full((8, 2), float("nan")),
            ValueRangeError,
            "layers.l0.d holds NaN or infinity, expected finite number",
        ),
        (torch.ones(8, 2).half(), CheckpointError, "layers.l0.d is torch.float16, expected torch.float32. Save the"),
        (torch.ones(2, 8), ShapeError, "layers.l0.d has shape (2, 8), expected (8, 2). Nothing changed."),
    ],
)
def test_values_are_checked(file: Path, value: Tensor, error: type[Exception], text: str) -> None:
    rewrite(file, tensors={"layers.l0.d": value})
    refused(file, error, text)


def refused(file: Path, error: type[Exception], text: str) -> None:
    views = attach(toy_model(), roles=("scale", "zero"))
    before = bits(views)
    with pytest.raises(error) as caught:
        load_delta(file, views)
    assert str(caught.value).startswith(f"{file}: {text}")
    assert all(same_bits(view.read(), before[view.name]) for view in views)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.safetensors: cannot be read: No such file"):
        read_delta(tmp_path / "none.safetensors")


def test_cut_short_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "delta.safetensors"
    views = moved(toy_model(layers=1, rows=4))
    save_delta(path, views)
    data = path.read_bytes()
    for cut in range(len(data)):
        path.write_bytes(data[:cut])
        with pytest.raises(CheckpointError, match=r"delta\.safetensors: "):
            load_delta(path, views)


def test_every_flipped_byte_of_the_header(tmp_path: Path) -> None:
    """A damaged header is refused with one of zoquant's errors, or means what it meant."""
    path = tmp_path / "delta.safetensors"
    views = moved(toy_model(layers=1, rows=4))
    expected = bits(views)
    save_delta(path, views)
    data = path.read_bytes()
    refusals = harmless = 0
    for place in range(8 + int.from_bytes(data[:8], "little")):
        for flip in (0x01, 0x20, 0xFF):
            damaged = bytearray(data)
            damaged[place] ^= flip
            path.write_bytes(damaged)
            try:
                load_delta(path, views)
            except (CheckpointError, BaseMismatchError, ShapeError, ValueRangeError) as error:
                refusals += str(path) in str(error)
            else:
                harmless += 1
            assert all(same_bits(view.read(), expected[view.name]) for view in views)
    assert refusals > 600
    assert refusals + harmless == 3 * (8 + int.from_bytes(data[:8], "little"))


def test_the_mean_of_runs_is_rounded_once(file: Path) -> None:
    """The sum of three float32 would round; in float64 it does not."""
    one = read_delta(file)
    third = Delta({key: value / 3 for key, value in one.values.items()}, dict(one.base), one.space)
    mean = Delta.mean([one, third, third])
    for key in one.values:
        parts = [delta.values[key].double() for delta in (one, third, third)]
        assert same_bits(mean.values[key], (sum(parts[1:], parts[0]) / 3).float())
    assert Delta.mean([one]).values.keys() == one.values.keys()


def test_the_mean_refuses_nothing_and_what_does_not_fit(file: Path) -> None:
    one = read_delta(file)
    with pytest.raises(ValueError, match="got no delta, expected at least one"):
        Delta.mean([])
    with pytest.raises(BaseMismatchError, match="Use one space"):
        Delta.mean([one, Delta(dict(one.values), dict(one.base), "absolute")])


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"space": "log"}, CheckpointError, "the header does not name space and base"),
        ({"base": {}}, CheckpointError, "the header does not name space and base"),
        ({"values": {"layers.l0.d": torch.zeros(3)}}, ShapeError, r"layers.l0.d has shape \(3,\), expected \(8, 2\)"),
        ({"values": {"layers.l0.d": torch.full((8, 2), torch.inf)}}, ValueRangeError, "layers.l0.d holds NaN or inf"),
        ({"values": {"layers.l0.d": torch.zeros(8, 2).double()}}, CheckpointError, "is torch.float64, expected torch"),
    ],
)  # fmt: skip
def test_a_delta_from_anywhere_is_checked_before_it_is_put(
    model: ToyModel, change: dict[str, Any], error: type[Exception], text: str
) -> None:
    views = moved(model)
    before, held = bits(views), Delta.of(views)
    values = {**held.values, **change.get("values", {})}
    damaged = Delta(**{**vars(held), **change, "values": values})
    with pytest.raises(error, match=text):
        damaged.put(views)
    assert all(same_bits(value, before[key]) for key, value in bits(views).items())
    held.put(views)
    assert all(same_bits(value, before[key]) for key, value in bits(views).items())
