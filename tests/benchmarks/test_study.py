"""The study on a tiny model: kills, the grid, the first-order gradient, the table and the picture."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

import zoquant
from benchmarks.study import __main__ as command
from benchmarks.study import first, zeroth
from benchmarks.study.examples import examples, read_tsv
from benchmarks.study.models import Models
from benchmarks.study.picture import plot
from benchmarks.study.record import Records, Result, TimeUpError
from benchmarks.study.report import table
from benchmarks.study.rows import MEZO, QZO, VALUES, Row, batched, jobs, qzo, rows
from benchmarks.study.work import CENTER, Study
from benchmarks.study.zeroth import course, views_of
from tests.tiny import write_checkpoint
from zoquant import presets
from zoquant.native import QuantEmbedding, QuantLinear
from zoquant.native.layers import QuantWeight
from zoquant.tasks import Classification, Template
from zoquant.training import Settings

CALIBRATED = Row("two-point, calibrated", 93, VALUES, seeds=(0,))
DEFAULT = Row("default", 6, method="default", seeds=(0,))
GIVEN = Row("given numbers", 40, {"lr": 1e-3, "eps": 3e-2, "rule": "adam"}, seeds=(0,))
BATCHED = replace(batched(6)[1], seeds=(0,))
BOUND = Row("first-order", 4, method="first-order", seeds=(0,))


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sst2")
    text = "".join(
        f"{thing} {verb}\t{int(verb == 'ok')}\n" for verb in ("ok", "off") for thing in ("tap", "hob", "key")
    )
    for part in ("train", "dev", "test"):
        (folder / f"{part}.tsv").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def close_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zeroth, "MARKS", (2, 10, 86, 90))
    monkeypatch.setattr(first, "EVERY", 2)


@pytest.fixture(autouse=True)
def words_of_one_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "benchmarks.study.examples.TEMPLATE", Template("{sentence}: {label}", {"0": "bad", "1": "good"})
    )


@pytest.fixture
def study_of(model_file: Path, data: Path, tmp_path: Path) -> Callable[..., Study]:
    models = Models(model_file, None, torch.float32)

    def make(lines: list[Row], out: str = "out", check: Callable[[], None] = lambda: None) -> Study:
        return Study(lines, models, data, Records(tmp_path / out), check)

    return make


@pytest.mark.parametrize("row", [CALIBRATED, DEFAULT, GIVEN, BATCHED, BOUND], ids=lambda row: row.name)
def test_a_run_that_is_stopped_and_killed_goes_on_to_the_same_numbers(
    row: Row, study_of: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = study_of([row], "whole")
    whole.work()
    deaths = _deaths(monkeypatch, calls=3)
    study, slices = study_of([row], "slices", check=_ends_every(3)), 0
    while study.records.read(row, 0) is None:
        slices += 1
        with contextlib.suppress(TimeUpError, KeyboardInterrupt):
            study.work()
    assert slices > 2
    assert next(deaths) > 0
    assert _numbers(study.records.read(row, 0)) == _numbers(whole.records.read(row, 0))
    assert [path.suffix for path in (study.records.folder / "unfinished").iterdir()] == [".lock"]


def test_a_finished_run_is_left_alone_and_a_held_one_too(
    study_of: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_of([GIVEN])
    with study.records.draft(GIVEN, 0) as draft:
        assert draft is not None
        study.work()
        assert study.records.read(GIVEN, 0) is None
    study.work()
    done = study.records.read(GIVEN, 0)
    assert done is not None
    monkeypatch.setattr(study, "_run", None)
    study.work()
    assert study.records.read(GIVEN, 0) == done


def test_forwards_are_those_that_were_spent(study_of: Callable[..., Study], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [0]
    scores = Classification.scores

    def counted(self: Classification, model: Any, batch: Any, **how: Any) -> torch.Tensor:
        calls[0] += len(batch.lengths) == zeroth.BATCH  # evaluations here see all of dev, which is smaller
        return scores(self, model, batch, **how)

    monkeypatch.setattr(Classification, "scores", counted)
    study = study_of([CALIBRATED])
    study.work()
    found = study.records.read(CALIBRATED, 0)
    assert found is not None
    assert found["forwards"] == calls[0] == 93
    assert [each["forwards"] for each in found["curve"]] == [0, 87, 91, 93]
    assert found["calibration"]["forwards"] == zeroth.CALIBRATION


def test_every_line_has_a_course_within_its_forwards() -> None:
    for row in rows(2000, 20_000):
        if row.method not in ("default", "zeroth-order", "batched"):
            continue
        numbers = {"lr": 1.0, "eps": 1.0} if row.factors or row.best else {}
        plan = course(row, 0, numbers)
        calibrated = plan.settings.missing and row.method != "default"
        before = 83 * plan.settings.batch_size / 16 if calibrated else 0
        assert row.forwards - plan.a_step < before + plan.settings.steps * plan.a_step <= row.forwards, row.name
        assert {0, plan.settings.steps} <= plan.marks
    assert course(Row("b", 1000, {"batch_size": 64, "lr": 1.0, "eps": 1.0}), 0, {}).settings.steps == 125


def test_the_default_row_is_a_run_with_no_number_given(study_of: Callable[..., Study]) -> None:
    study = study_of([DEFAULT])
    study.work()
    (found,) = study.records.of(DEFAULT)
    numbers = Settings(steps=3, subspace="rows-columns").by_rule()
    assert found["steps"] == 3
    assert found["calibration"] is None
    assert found["numbers"] == {"lr": numbers.lr, "eps": 0.03, "clip": None}
    assert [each["forwards"] for each in found["curve"]] == [0, 2, 6]


def test_rows_of_values_say_so() -> None:
    for row in rows(2000, 20_000):
        if row.method == "zeroth-order":
            assert row.settings["subspace"] == "values", row.name


def test_every_batched_row_makes_its_steps(study_of: Callable[..., Study]) -> None:
    lines = [replace(row, forwards=90 if "lr" not in row.settings else 4, seeds=(0,)) for row in batched(0)]
    study = study_of(lines)
    study.work()
    found = {row.name: study.records.of(row)[0] for row in lines}
    assert [(each["steps"], each["lifeless"]) for each in found.values()] == [
        (3, False),
        (2, False),
        (2, False),
        (2, False),
    ]


def test_a_run_too_short_for_its_calibration_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least 85"):
        course(Row("two-point, calibrated", 84, VALUES), 0, {})


def test_early_lines_have_all_their_seeds_at_once_and_the_others_take_turns() -> None:
    lines = [Row("a", 1, early=True, seeds=(0, 1)), Row("b", 1, seeds=(0, 1)), Row("c", 1, seeds=(0,))]
    assert [(row.name, seed) for row, seed in jobs(lines)] == [("a", 0), ("a", 1), ("b", 0), ("c", 0), ("b", 1)]


@pytest.mark.parametrize(("settings", "preset"), [(QZO, presets.qzo), (MEZO, presets.mezo)])
def test_the_rows_of_the_papers_are_the_presets(settings: Any, preset: Any, model_file: Path) -> None:
    model, _ = zoquant.load(model_file, compute_dtype=torch.float32, device="cpu")
    roles = {"roles": ("scale",)}  # the tiny checkpoint's; which values move does not change the optimizer
    chosen = Settings(**{**settings, **roles, "lr": 3e-4, "eps": 2e-3})
    ours, theirs = (make(views_of(model, chosen)) for make in (chosen.optimizer, _with_rates(preset)))
    assert ours.trajectory.header() == theirs.trajectory.header()
    for name in ("lr", "eps", "clip"):
        assert ours.param_groups[0][name] == theirs.param_groups[0][name]


def test_the_grid_is_measured_once_and_its_best_goes_on_with_other_seeds(study_of: Callable[..., Study]) -> None:
    lines = [row for row in qzo(8) if "paper" not in row.name]
    study = study_of(lines)
    study.work("*the best*")
    assert study.records.of(lines[-1]) == [], "the best of a grid that has not run"
    study.work()
    results = [found for row in lines[:-1] for found in study.records.of(row)]
    middle = study.records.keep(CENTER, dict)
    assert {round(found["numbers"]["lr"] / middle["lr"], 3) for found in results} == {1.0, 0.333, 3.0}
    assert {round(found["numbers"]["eps"] / middle["eps"], 3) for found in results} == {1.0, 0.333, 3.0}
    assert results[0]["numbers"] == {"lr": middle["lr"], "eps": middle["eps"], "clip": 100.0}
    best = study.records.of(lines[-1])
    assert [found["seed"] for found in best] == [0, 1, 2]
    top = max(results, key=lambda found: (found["curve"][-1]["accuracy"], -found["curve"][-1]["loss"]))
    assert best[0] == {**top, "row": lines[-1].name, "same_as": top["row"]}
    assert all(found["numbers"] == top["numbers"] for found in best)


def test_a_loss_that_is_never_finite_ends_the_run(
    study_of: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Classification, "loss", lambda self, model, batch: torch.tensor(float("nan")))
    study = study_of([GIVEN])
    study.work()
    found = study.records.read(GIVEN, 0)
    assert found is not None
    assert found["lifeless"]
    assert found["steps"] == 10


def test_rows_that_cannot_run_here_are_skipped_with_a_word(
    study_of: Callable[..., Study], capsys: pytest.CaptureFixture[str]
) -> None:
    aqlm = [row for row in rows(100, 100) if row.model == "aqlm"]
    study_of(aqlm).work()
    assert capsys.readouterr().out.count("skipped, no --aqlm was given") == sum(len(row.seeds) for row in aqlm) == 4


def test_a_run_that_was_begun_in_another_dtype_is_left_as_it_is(
    study_of: Callable[..., Study], capsys: pytest.CaptureFixture[str]
) -> None:
    study = study_of([GIVEN], check=_ends_every(3))
    with contextlib.suppress(TimeUpError):
        study.work()
    folder = study.records.folder / "unfinished"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    study.models = Models(cast(Path, study.models.paths["checkpoint"]), None, torch.bfloat16)
    study.work()
    said = capsys.readouterr().out
    assert "skipped, " in said
    assert "was begun in torch.float32, and this machine has torch.bfloat16" in said
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    study.models = Models(cast(Path, study.models.paths["checkpoint"]), None, torch.float32)
    while study.records.read(GIVEN, 0) is None:
        with contextlib.suppress(TimeUpError):
            study.work()
    assert cast(Result, study.records.read(GIVEN, 0))["compute_dtype"] == "torch.float32"


def test_first_order_gradients_are_the_slopes_of_the_scales(model_file: Path, data: Path) -> None:
    """Along random directions of delta, against difference quotients through the views, which round to float16."""
    model, tokenizer = zoquant.load(model_file, compute_dtype=torch.float32, device="cpu")
    train = examples(data, tokenizer, 0).train
    batch = train.batch_of_step(0, 0, 8)
    views = zoquant.attach(model)
    layers = [module for module in model.modules() if isinstance(module, QuantLinear | QuantEmbedding)]
    orders = [cast(QuantWeight, layer.packed).row_order for layer in layers]
    quotients, directions = [], []
    for seed in range(3):
        opt = zoquant.ZOSGD(views, eps=0.03, seed=seed)
        plus, minus = (opt.loss_at(evaluation, lambda: train.loss(model, batch)) for evaluation in opt.plan())
        quotients.append((plus - minus) / 0.06)
        views.add(cast(int, opt.plan()[0].seed), 1.0, "rademacher")
        moved = [views.delta(slot[0]) for slot in views.coupled_keys()]
        directions.append([z if order is None else z[order] for z, order in zip(moved, orders, strict=True)])
        views.reset()
    deltas = first.rescale(model)
    other, _ = zoquant.load(model_file, compute_dtype=torch.float32, device="cpu")
    some = first.rescale(other, ("*.layers.1.*",))
    assert 0 < len(some) < len(deltas) == sum(parameter.requires_grad for parameter in model.parameters())
    assert len(some) == sum(parameter.requires_grad for parameter in other.parameters())
    train.loss(model, batch).backward()  # type: ignore[no-untyped-call]
    for quotient, zs in zip(quotients, directions, strict=True):
        slope = sum(float((cast(torch.Tensor, delta.grad) * z).sum()) for delta, z in zip(deltas, zs, strict=True))
        assert slope == pytest.approx(quotient, rel=0.05, abs=0.03)
    assert max(map(abs, quotients)) > 0.2
    third, _ = zoquant.load(model_file, compute_dtype=torch.float32, device="cpu")
    parts = first.rescale(third, factored=True)
    train.loss(third, batch).backward()  # type: ignore[no-untyped-call]
    for delta, u, v in zip(deltas, parts[::2], parts[1::2], strict=True):
        slopes = cast(torch.Tensor, delta.grad)
        torch.testing.assert_close(u.grad, slopes.sum(1, keepdim=True), rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(v.grad, slopes.sum(0, keepdim=True), rtol=1e-3, atol=1e-5)


def test_lines_of_a_tsv_may_hold_tabs_and_quotes(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text('a "b\tc\t1\n\nd\t0\n', encoding="utf-8")
    assert read_tsv(tmp_path / "x.tsv") == [{"sentence": 'a "b\tc', "label": "1"}, {"sentence": "d", "label": "0"}]


def test_table_and_targets_from_canned_results(tmp_path: Path) -> None:
    lines, records = rows(2000, 20_000), Records(tmp_path)
    _canned(lines, records)
    text = table(lines, records)
    assert (
        "| default | 2,000 | 3 | 71.0 % (70.0 % to 72.0 %) | 69.0 % (68.0 % to 70.0 %) | 0.600 (0.600 to 0.600) |"
        in text
    )
    assert "| 0.01, 0.03 |" in text
    assert "| first-order, Adam, lr 2e-3 | 75 + backward | 1 | 87.0 % | 85.0 % |" in text
    assert "tuned QZO has 77.0 % of test after 2,000 forwards, the default 77.0 % after 250, 69.0 % after 2,000" in text
    assert "the target is 250: met." in text
    assert "of test 48.0 %, 77.0 % and 85.0 %: 78% of the gain, missed." in text
    assert "Not run: " in text
    assert "momentum" in text.split("Not run: ")[1]


def test_the_picture_shows_the_curves(tmp_path: Path) -> None:
    lines, records = rows(2000, 20_000), Records(tmp_path / "out")
    _canned(lines, records)
    empty = plot(lines, Records(tmp_path / "nothing"), tmp_path / "empty.png").read_bytes()
    drawn = plot(lines, records, tmp_path / "study.png").read_bytes()
    assert drawn.startswith(b"\x89PNG")
    assert len(drawn) > len(empty) + 5000


def test_the_command_line_runs_shows_and_refuses_another_budget(
    model_file: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "out")]
    run = ["run", *out, "--data", str(data), "--model", str(model_file), "--only", "zero-shot"]
    with pytest.raises(SystemExit, match="holds no study"):
        command.main(["table", *out])
    command.main([*run, "--forwards", "200", "--long", "400"])
    command.main(["table", *out])
    assert "| zero-shot | 0 | 1 | " in capsys.readouterr().out
    with pytest.raises(SystemExit, match="was begun with"):
        command.main([*run, "--forwards", "300"])
    command.main([*run[:-1], "qzo, the paper*", "--forwards", "200", "--long", "400", "--minutes", "0"])
    assert "The time is up" in capsys.readouterr().out


def _ends_every(count: int) -> Callable[[], None]:
    calls = [0]

    def check() -> None:
        calls[0] += 1
        if calls[0] % count == 0:
            raise TimeUpError

    return check


def _deaths(monkeypatch: pytest.MonkeyPatch, calls: int) -> Iterator[int]:
    """Let every third evaluation die, and yield how many have."""
    evaluate, seen = Classification.evaluate, [0, 0]

    def dying(self: Classification, model: Any) -> Any:
        seen[0] += 1
        if seen[0] % calls == 0:
            seen[1] += 1
            raise KeyboardInterrupt
        return evaluate(self, model)

    monkeypatch.setattr(Classification, "evaluate", dying)
    return (seen[1] for _ in range(1))


def _numbers(result: Result | None) -> Result:
    assert result is not None
    return {name: value for name, value in result.items() if name != "seconds"}


def _with_rates(preset: Any) -> Any:
    return lambda views: preset(views, lr=3e-4, eps=2e-3)


def _canned(lines: list[Row], records: Records) -> None:
    curves = {
        "zero-shot": {0: 0.5},
        "default": {0: 0.5, 500: 0.6, 2000: 0.7},
        "default, N/8 forwards": {0: 0.5, 250: 0.61},
        "qzo, the best of the grid": {0: 0.5, 500: 0.55, 2000: 0.6},
        "first-order, Adam, lr 2e-3": {0: 0.5, 50: 0.87, 75: 0.8},
        "default, long": {0: 0.5, 10_000: 0.8, 20_000: 0.79},
    }
    dev = {"default": (0.7, 0.71, 0.72), "first-order, Adam, lr 2e-3": (0.87,), "zero-shot": (0.5,)}
    for row in lines:
        for seed, accuracy in enumerate(dev.get(row.name, (0.79,))):
            if row.name not in curves:
                continue
            points = [{"forwards": at, "accuracy": share, "loss": 0.6} for at, share in curves[row.name].items()]
            ends = {part: {"accuracy": accuracy - less, "loss": 0.6} for part, less in (("dev", 0), ("test", 0.02))}
            result = {"forwards": points[-1]["forwards"], "seconds": 600.0, "numbers": {"lr": 0.01, "eps": 0.03}}
            result["compute_dtype"] = "torch.bfloat16" if seed else "torch.float32"
            records.write(row, seed, {"row": row.name, "seed": seed, "curve": points, **result, **ends})
