"""What `make bench` measures. Nothing is timed here."""

import json
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

import zoquant
from benchmarks.bench import __main__ as command
from benchmarks.bench import peers, textbook
from benchmarks.bench.dense import make_dense, native_copy, weights_of, why_not_dense
from benchmarks.bench.derivatives import derivatives, sentences
from benchmarks.bench.forward import native_against_dense
from benchmarks.bench.peak import _in_child, _use
from benchmarks.bench.peers import PEERS
from benchmarks.bench.pipeline import pipeline
from benchmarks.bench.results import file_name, save
from benchmarks.bench.run import bench
from benchmarks.bench.table import Row, rows
from benchmarks.bench.target import Target
from benchmarks.bench.textbook import lora, mezo_step, qzo_step
from tests.backends.gguf.models import tiny
from tests.tiny import ROWS, TEMPLATE, write_checkpoint
from tests.toy import toy_layer, toy_model
from zoquant.native import PackedWeight, QuantEmbedding, QuantLinear
from zoquant.tasks import Batch, Classification, Template


def test_the_whole_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_checkpoint(tmp_path / "base.gguf")
    memory = {"before": 10, "peak": 30, "gpu": 0}
    monkeypatch.setattr("benchmarks.bench.peak._in_child", lambda *args: memory)
    found = bench(path, batch=2, length=3, quick=True, peers=True, derivatives=True)
    assert {name: each["forwards"] for name, each in found["estimators"].items()} == {
        "two-point": 2, "one-sided": 2, "fzoo": 3, "group-relative": 4,
    }  # fmt: skip
    assert found["memory"]["load_peak_over_imports_bytes"] == 20
    assert found["input"]["rows"] == 1000
    assert 0 < found["input"]["batch_over_step"]["median"] < 1
    assert {name: each["rows"] for name, each in found["batched"].items()} == {"together": 16, "each": 4, "default": 4}
    assert not [name for name, each in found["peers"].items() if "skipped" in each]
    assert found["memory"]["peers"][PEERS[1].name] == {"train_peak_bytes": 30}
    assert found["derivatives"]["probes"] == 5
    assert all(found["derivatives"][path]["correlation"] > 0.9 for path in ("products", "activations"))
    table = {row.figure: row for row in rows(found)}
    assert len(table) == len(rows(found)) > 50
    assert table["training all views / evaluating, peak memory"].measured == "1.000"
    assert not any(row.target for row in table.values()), "a quick run is held to no target"
    aimed = [row.target for row in rows({**found, "quick": False}) if row.target is not None]
    assert [(each.side, each.bound) for each in aimed] == [
        *[("at most", 1.03)] * 2, ("at most", 0.02), *[("at most", 1.03)] * 2, ("at least", 1000),
        *[("at least", 0.95)] * 3, ("at most", 0.5), *[("at most", 1.1)] * 2, *[("at least", 0.99)] * 2,
    ]  # fmt: skip
    assert json.loads(save(found, tmp_path).read_text(encoding="utf-8")) == found


def test_the_table_on_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = {"processor": "Chip 1", "threads": 1, "torch": "2", "kernels": "compiled"}
    row = Row("overhead", "1.01 (1.00 to 1.02)", Target("overhead", "at most", 1.03, 1.01))
    monkeypatch.setattr(command, "bench", lambda path, **settings: {"machine": machine, "kind": "bench"})
    monkeypatch.setattr(command, "rows", lambda found: [row])
    monkeypatch.setattr(sys, "argv", ["bench", "model.gguf", "--out", str(tmp_path)])
    command.main()
    said = capsys.readouterr().out
    assert all(text in said for text in ("1.01 (1.00 to", "at most 1.03", "met"))
    assert (tmp_path / "chip-1.json").exists()
    monkeypatch.setattr(sys, "argv", ["bench", "model.gguf", "--out", str(tmp_path / "gone")])
    with pytest.raises(SystemExit):
        command.main()
    assert "is no folder" in capsys.readouterr().err


def test_a_target_is_met_up_to_its_bound() -> None:
    assert Target("a", "at most", 1.03, 1.03, 1).verdict == "met"
    assert Target("a", "at most", 1.03, 1.031, 1).verdict == "missed"
    assert Target("a", "at least", 0.99, 0.99).verdict == "met"
    assert Target("a", "at least", 0.99, 0.98).verdict == "missed"
    assert Target("a", "at least", 0.99, None, 1).verdict == "not measured"
    assert Target("a", "at least", 0.95, 0.93, 1).left == "7.00 %"
    assert Target("a", "at most", 0.5, 0.4).left == ""


def test_measuring_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    """Values, their dtype, and the dtype of the products; a tied head and the lookup table share their words."""
    model, tokenizer = zoquant.load(write_checkpoint(tmp_path / "base.gguf"))
    views = zoquant.attach(model)
    ids, before = torch.tensor([[1, 2], [3, 4]]), (views.fingerprints(), [view.dtype for view in views])
    peers.peers(model, ids, 2)
    native_against_dense(model, ids, 2)
    task = sentences(tokenizer, ids.device)
    derivatives(model, task, 2, 2, torch.bfloat16)
    pipeline(model, task, 2, 2)
    views = zoquant.attach(model)
    assert (views.fingerprints(), [view.dtype for view in views]) == before


def test_a_dense_model_computes_what_the_packed_one_does(tmp_path: Path) -> None:
    packed, _ = zoquant.load(write_checkpoint(tmp_path / "base.gguf"), compute_dtype=torch.float32)
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        expected = packed(ids).logits
        count = weights_of(packed)
        assert native_copy(packed, torch.float32)(ids).logits.equal(expected)
        dense = make_dense(packed, torch.float32)
        torch.testing.assert_close(dense(ids).logits, expected, rtol=1e-4, atol=1e-4)
    assert not any(isinstance(module, PackedWeight) for module in dense.modules())
    assert sum(parameter.numel() for parameter in dense.parameters()) == count


def test_tied_words_become_one_parameter() -> None:
    layer = toy_layer()
    model = torch.nn.ModuleList([QuantEmbedding(layer.packed, scale=3.0), layer])
    ids, expected = torch.tensor([[0, 5]]), model[0](torch.tensor([[0, 5]]))
    embedding, linear = cast(torch.nn.ModuleList, make_dense(model, torch.bfloat16))
    assert embedding.weight is linear.weight
    assert embedding.weight.dtype == torch.bfloat16
    torch.testing.assert_close(embedding(ids).float(), expected, rtol=1e-2, atol=1e-3)


def test_what_does_not_fit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy_model()
    monkeypatch.setattr("benchmarks.bench.dense._free_bytes", lambda device: 16 * weights_of(model) / 0.8)
    assert why_not_dense(model, 16) is None
    assert "does not fit: needs" in str(why_not_dense(model, 17))
    assert "not zoquant's own" in str(why_not_dense(torch.nn.Linear(2, 2), 1))
    assert peers.why_not(PEERS[2], model) == "no q_proj and v_proj"
    assert peers.why_not(PEERS[0], model) is None


def test_the_memory_of_each_way_is_taken_in_a_process_of_its_own(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "base.gguf")
    found = _in_child(PEERS[1].name, path, 2, 3)
    assert 0 < found["before"] < found["peak"]
    assert "skipped" not in _in_child("default", path, 2, 3)
    with pytest.raises(ChildProcessError, match="ended with status 1"):
        _in_child("load", tmp_path / "gone.gguf", 2, 3)


def test_every_way_uses_the_model(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "base.gguf")
    ids = torch.tensor([[1, 2, 3]])
    for way in ("load", "evaluate", "train", *(peer.name for peer in PEERS)):
        model, _ = zoquant.load(path)
        assert _use(way, model, ids) is None
    bare = toy_model()
    assert _use(PEERS[2].name, bare, ids) == "no q_proj and v_proj"


class Linear:
    """A task whose loss is the sum of a model's scales times a number of the batch, with noise where it is fast."""

    noise = 0.0

    def batch_of_step(self, seed: int, step: int, size: int) -> float:
        return float(step + 1)

    def loss(self, model: torch.nn.Module, batch: float) -> Tensor:
        layer = cast(QuantLinear, model.get_submodule("layers.l0"))
        noise = 0.0 if layer.compute_dtype == torch.float32 else torch.rand(()) * self.noise
        return batch * layer.packed.value("d").float().sum() + noise


def test_the_agreement_of_derivatives() -> None:
    """Equal losses agree wholly, losses with noise do not; the loss is linear, so its derivatives are known."""
    task: Any = Linear()
    model = toy_model(dtype=torch.float32)
    exact = derivatives(model, task, 2, 40, torch.bfloat16)
    assert exact["products"] == exact["activations"] == {"correlation": 1.0, "relative_error": 0.0}
    assert exact["derivative_rms"] > 0
    task.noise = 10.0
    noisy = derivatives(model, task, 2, 40, torch.bfloat16)
    assert abs(noisy["products"]["correlation"]) < 0.9
    assert noisy["products"]["relative_error"] > 1


def test_mezo_moves_along_its_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.zeros(50, dtype=torch.float64)
    losses = iter((0.3, 0.1))
    monkeypatch.setattr(textbook, "sample_loss", lambda model, ids: next(losses))
    mezo_step([weight])(torch.nn.Identity(), torch.zeros(1), 7)
    z = torch.empty_like(weight).normal_(generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(weight, -textbook._LR * (0.3 - 0.1) / (2 * textbook._EPS) * z, rtol=1e-6, atol=1e-12)


def test_qzo_keeps_scales_above_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    scales = torch.full([200], 1e-5).half()
    losses = iter((900.0, 100.0))
    monkeypatch.setattr(textbook, "sample_loss", lambda model, ids: next(losses))
    qzo_step([scales])(torch.nn.Identity(), torch.zeros(1), 7)
    assert scales.min() == 0
    assert scales.max() > 0


def test_qzo_moves_the_scale_of_each_matrix_and_leaves_its_minimum(tmp_path: Path) -> None:
    model, _ = zoquant.load(write_checkpoint(tmp_path / "base.gguf"))
    before = {view.name: view.read() for view in zoquant.attach(model)}
    trained = PEERS[0].prepare(model)
    trained.step(trained.model, torch.tensor([[1, 2, 3]]), 0)
    moved = {view.name for view in zoquant.attach(model) if not torch.equal(view.read(), before[view.name])}
    assert moved == {name for name in before if name.endswith(".d")}
    assert trained.parameters == sum(before[name].numel() for name in moved)


def test_an_adapter_begins_at_zero() -> None:
    model = tiny("llama", vocab_size=300)
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        before = model(ids).logits
        trained = lora(model)
        assert torch.equal(model(ids).logits, before)
        trained[1].fill_(0.1)
        assert not torch.equal(model(ids).logits, before)
    projections = [path for path, _ in model.named_modules() if path.endswith(("q_proj", "v_proj"))]
    assert len(trained) == 2 * len(projections) > 0


class Stalls(Classification):
    """Reviews on a clock of their own: a batch takes so many seconds, the losses of a step 8."""

    def __init__(self, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
        super().__init__(ROWS, Template(TEMPLATE, {"0": "bad", "1": "good"}), tokenizer, torch.device("cpu"))
        self.now, self.seconds, self.sizes = 0.0, seconds, list[tuple[int, int]]()
        monkeypatch.setattr("benchmarks.bench.pipeline.time.perf_counter", lambda: self.now)

    def batch_of_step(self, seed: int, step: int, size: int) -> Batch:
        self.now += self.seconds
        self.sizes.append((step, size))
        return super().batch_of_step(seed, step, size)

    def losses(self, model: torch.nn.Module, batch: Batch) -> Tensor:
        self.now += 8.0
        return super().losses(model, batch)


@pytest.mark.parametrize(("seconds", "share"), [(0.0, 0.0), (2.0, 0.2), (8.0, 0.5)])
def test_the_share_of_the_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, share: float) -> None:
    """In a run of the trainer, the batch of a step and its one forward of both signs are the step."""
    model, tokenizer = zoquant.load(write_checkpoint(tmp_path / "base.gguf"))
    task = Stalls(tokenizer, monkeypatch, seconds)
    found = pipeline(model, task, 3, 5)
    assert found["subspace"] == "rows-columns"
    assert found["step_seconds"]["median"] == pytest.approx(seconds + 8)
    assert found["batch_seconds"]["median"] == pytest.approx(seconds)
    assert found["batch_over_step"]["median"] == pytest.approx(share)
    assert found["rows"] == len(ROWS)
    assert task.sizes[-8:] == [(step, 3) for step in range(8)]


def test_the_name_of_a_file_is_that_of_its_machine() -> None:
    assert file_name("Intel(R) Xeon(R) Processor, 2 cores") == "intel-xeon-processor-2-cores"
