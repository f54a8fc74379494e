"""Export: the same file, but for the bytes of what moved."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import zoquant
from tests.toy import DTYPES, ToyFormat, stored, toy_batch, toy_loss, toy_model, write_toy
from zoquant import ZOSGD, attach, export, save_delta
from zoquant.checkpoint.exporting import export_counted
from zoquant.checkpoint.replay_views import checkpoint_views
from zoquant.checkpoint.stored_values import read_base
from zoquant.errors import BaseMismatchError, CheckpointError, OutputExistsError, RegistryError, ShapeError
from zoquant.protocol import ROLES
from zoquant.testing.format_case import span_bytes
from zoquant.testing.tensors import same_bits


def train(file: Path, **how: Any) -> zoquant.Views:
    model, _ = zoquant.load(file, compute_dtype=torch.float32)
    views = attach(model, roles=("scale", "zero"))
    optimizer = ZOSGD(views, lr=5e-2, **how)
    for step in range(3):
        optimizer.step(lambda step=step: toy_loss(model, toy_batch(seed=step)))
    return views


def test_the_whole_way(toy_file: Path, tmp_path: Path) -> None:
    views = train(toy_file)
    delta, out = tmp_path / "delta.safetensors", tmp_path / "tuned.toy"
    save_delta(delta, views)
    assert export(str(toy_file), delta=str(delta), out=str(out)) == out
    assert out.stat().st_size == toy_file.stat().st_size
    tuned = attach(zoquant.load(out)[0], roles=("scale", "zero"))
    for view, other in zip(views, tuned, strict=True):
        assert same_bits(view.read(), other.read())
    with pytest.raises(BaseMismatchError, match=r"made on another base: layers\.l0\.d has fingerprint"):
        export(out, delta=delta, out=tmp_path / "twice.toy")


def test_zero_delta_is_byte_identical(toy_file: Path, tmp_path: Path) -> None:
    delta, out = tmp_path / "delta.safetensors", tmp_path / "tuned.toy"
    save_delta(delta, attach(zoquant.load(toy_file)[0], roles=ROLES))
    export(toy_file, delta=delta, out=out)
    assert out.read_bytes() == toy_file.read_bytes()


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(sorted(DTYPES)), st.sampled_from(("relative", "absolute")), st.integers(0, 99),
    st.sampled_from((1e-4, 1e-2, 0.7, 1e6)),
)  # fmt: skip
def test_only_moved_values_change_and_as_live_ones_do(
    toy_format: ToyFormat, tmp_path: Path, dtype: str, space: Any, seed: int, amount: float
) -> None:
    model = toy_model(seed, dtype=DTYPES[dtype])
    stored(model, "l0", "m")[0] = -0.0
    base, delta, out = (tmp_path / name for name in ("base.toy", "delta.safetensors", "out.toy"))
    out.unlink(missing_ok=True)
    write_toy(base, model, dtype)
    views = attach(model, roles=("scale", "zero"))
    views.space = space
    views.add(seed, amount, "gaussian")
    still = views.keys[seed % len(views)]
    views.set_delta({still: torch.zeros_like(views.delta(still))})
    save_delta(delta, views)
    export(base, delta=delta, out=out)
    index, exported = toy_format.index(base), toy_format.index(out)
    old, new = (torch.from_numpy(np.fromfile(path, dtype=np.uint8)) for path in (base, out))
    allowed = torch.zeros(len(old), dtype=torch.bool)
    for view in views:
        assert same_bits(read_base(out, exported[view.name]), view.read())
        if view.name != still:
            allowed |= span_bytes(len(old), index[view.name])
    assert not ((old != new) & ~allowed).any()


def test_a_delta_of_some_views(toy_file: Path, tmp_path: Path) -> None:
    delta, out = tmp_path / "delta.safetensors", tmp_path / "tuned.toy"
    views = attach(zoquant.load(toy_file)[0], include="*.l1.d")
    views.add(1, 0.25, "rademacher")
    save_delta(delta, views)
    export(toy_file, delta=delta, out=out)
    assert set(
        np.flatnonzero(np.frombuffer(out.read_bytes(), np.uint8) != np.frombuffer(toy_file.read_bytes(), np.uint8))
    )
    before = ToyFormat().index(toy_file)
    for key, span in ToyFormat().index(out).items():
        same = torch.equal(read_base(out, span), read_base(toy_file, before[key]))
        assert same == (key != "layers.l1.d")


@pytest.fixture
def delta(toy_file: Path, tmp_path: Path) -> Path:
    path = tmp_path / "delta.safetensors"
    views = attach(zoquant.load(toy_file)[0])
    views.add(1, 0.25, "rademacher")
    save_delta(path, views)
    return path


def test_what_exists_is_not_overwritten(toy_file: Path, delta: Path) -> None:
    before = toy_file.read_bytes()
    with pytest.raises(OutputExistsError, match=r"base\.toy: already exists; nothing is overwritten"):
        export(toy_file, delta=delta, out=toy_file)
    assert toy_file.read_bytes() == before


def test_another_base_is_refused(toy_file: Path, delta: Path, tmp_path: Path) -> None:
    other, out = write_toy(tmp_path / "other.toy", toy_model(seed=1)), tmp_path / "out.toy"
    with pytest.raises(BaseMismatchError, match=r"made on another base: layers\.l0\.d has fingerprint"):
        export(other, delta=delta, out=out)
    smaller = write_toy(tmp_path / "smaller.toy", toy_model(layers=2))
    with pytest.raises(BaseMismatchError) as caught:
        export(smaller, delta=delta, out=out)
    assert str(caught.value) == (
        f"{delta}: made for layers.l2.d, which {smaller} does not hold, where keys are such as layers.l0.d. "
        "Export to the checkpoint it was trained on."
    )
    wider = write_toy(tmp_path / "wider.toy", toy_model(rows=16))
    with pytest.raises(ShapeError, match=r"layers\.l0\.d has shape \[8, 2\], expected \[16, 4\]"):
        export(wider, delta=delta, out=out)
    assert not out.exists()


def test_damaged_files_are_refused(toy_file: Path, delta: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.toy"
    short = tmp_path / "short.toy"
    short.write_bytes(toy_file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"short\.toy: has 590 bytes, expected 591"):
        export(short, delta=delta, out=out)
    half = tmp_path / "half.safetensors"
    half.write_bytes(delta.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"half\.safetensors: .header.: expected at most 92 bytes"):
        export(toy_file, delta=half, out=out)
    foreign = tmp_path / "foreign.safetensors"
    foreign.write_bytes(safetensors.torch.save({"a": torch.ones(1)}))
    with pytest.raises(CheckpointError, match="expected a zoquant delta, got another safetensors file"):
        export(toy_file, delta=foreign, out=out)
    assert not out.exists()


def test_unknown_checkpoints(toy_format: ToyFormat, delta: Path, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"none: no such file or folder\. Pass the path of a quantized checkpoint"
    ):
        export(tmp_path / "none", delta=delta, out=tmp_path / "out")
    text = tmp_path / "text"
    text.write_text("hello")
    with pytest.raises(CheckpointError, match=r"text: not a checkpoint that zoquant knows, .*gguf.*toy"):
        export(text, delta=delta, out=tmp_path / "out")


def test_two_formats_for_one_file(toy_file: Path, delta: Path, tmp_path: Path) -> None:
    class Twin(ToyFormat):
        name = "twin"

    zoquant.register(format=Twin())
    try:
        with pytest.raises(RegistryError, match=r"base\.toy: claimed by the formats toy and twin"):
            export(toy_file, delta=delta, out=tmp_path / "out")
    finally:
        zoquant.unregister("twin")


def test_values_of_a_checkpoint_without_a_model(toy_file: Path) -> None:
    trained = train(toy_file)
    views = checkpoint_views(toy_file, trained.keys, coupled=True)
    assert views.fingerprints() == trained.fingerprints()
    with pytest.raises(BaseMismatchError, match=r"base\.toy: holds no layers\.l9\.d"):
        checkpoint_views(toy_file, ["layers.l9.d"], coupled=True)


def test_a_delta_that_vanishes_in_the_file_is_warned_of(toy_file: Path, tmp_path: Path) -> None:
    """Every value of it is above 0, and rounds to the base in float16."""
    views = attach(zoquant.load(toy_file, compute_dtype=torch.float32)[0])
    views.set_delta({key: torch.full_like(views.delta(key), 1e-6) for key in views.keys})
    assert views.share_changed() == 0
    save_delta(tmp_path / "lost.safetensors", views)
    with pytest.warns(UserWarning, match=rf"no value differs from the base: all {views.trainable} of the delta vanish"):
        out = export(toy_file, delta=tmp_path / "lost.safetensors", out=tmp_path / "same.toy")
    assert out.read_bytes() == toy_file.read_bytes()


def test_what_really_changes_in_the_file_is_counted(
    toy_file: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    views = attach(zoquant.load(toy_file, compute_dtype=torch.float32)[0], coupled=False)
    key = views.keys[0]
    views.set_delta({key: torch.full_like(views.delta(key), 0.25)})
    save_delta(tmp_path / "one.safetensors", views)
    path, values, changed = export_counted(toy_file, delta=tmp_path / "one.safetensors", out=tmp_path / "one.toy")
    assert (path, values, changed) == (tmp_path / "one.toy", views.trainable, views.delta(key).numel())
    assert views.share_changed() == changed / values
    views.reset()
    save_delta(tmp_path / "zero.safetensors", views)
    assert export_counted(toy_file, delta=tmp_path / "zero.safetensors", out=tmp_path / "zero.toy").changed == 0
    assert not recwarn.list


def test_two_threads_export_to_one_place(toy_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are at work at once; the second finds the place taken, and neither touches what the other writes."""
    views = attach(zoquant.load(toy_file)[0])
    views.add(1, 0.1, "rademacher")
    save_delta(tmp_path / "delta.safetensors", views)
    whole = export(toy_file, delta=tmp_path / "delta.safetensors", out=tmp_path / "alone.toy").read_bytes()
    met, copy = Barrier(2, timeout=60), shutil.copyfile

    def together(source: Path, target: Path) -> Any:
        met.wait()
        done = copy(source, target)
        met.wait()
        return done

    monkeypatch.setattr(shutil, "copyfile", together)
    out = tmp_path / "out" / "tuned.toy"
    out.parent.mkdir()
    with ThreadPoolExecutor(2) as threads:
        jobs = [threads.submit(export, toy_file, delta=tmp_path / "delta.safetensors", out=out) for _ in range(2)]
    told = [job.exception() for job in jobs]
    assert out.read_bytes() == whole
    assert [file.name for file in out.parent.iterdir()] == ["tuned.toy"]
    assert None in told
    assert all(error is None or isinstance(error, OutputExistsError) for error in told)
