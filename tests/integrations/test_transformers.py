"""ZOTrainer: Trainer's own loop over forward passes alone. Runs on transformers 4.48 and 5."""

import copy
import importlib
import json
import math
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainerCallback, TrainingArguments

import zoquant
from tests.integrations.tasks import HELD_OUT, ROWS, TOKENS, same, tiny, values_of
from zoquant.errors import BaseMismatchError, CheckpointError, LossError, NoViewsError
from zoquant.integrations.transformers import DELTA, TRAJECTORY, ZOTrainer
from zoquant.optim.estimators import OneSided
from zoquant.training import Settings

FIXED = Settings(lr=5e-3, eps=3e-2)


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    usual: dict[str, Any] = {
        "output_dir": str(folder / "run"), "max_steps": 6, "per_device_train_batch_size": 4, "logging_steps": 1,
        "save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True, "seed": 3,
    }  # fmt: skip
    return TrainingArguments(**{**usual, **changes})


def loss_of(model: Any, ids: Any, items: Any) -> Any:
    return model(input_ids=ids, labels=ids, num_items_in_batch=items).loss


def trainer(folder: Path, *, zo: Settings | None = FIXED, cls: type = ZOTrainer, **changes: Any) -> Any:
    own = ("compute_loss_func", "callbacks", "optimizers", "model", "data_collator", "eval_dataset")
    given = {name: changes.pop(name) for name in own if name in changes}
    given.setdefault("model", tiny(folder))
    return cls(args=arguments(folder, **changes), train_dataset=ROWS, zo=zo, **given)


def test_the_loop_trains_and_logs(tmp_path: Path) -> None:
    run = trainer(tmp_path, zo=replace(FIXED, lr=2e-2), max_steps=30, lr_scheduler_type="cosine")
    run.train_dataset = HELD_OUT
    before = run.evaluate(HELD_OUT)["eval_loss"]
    done = run.train()
    assert done.global_step == len(run.zo.trajectory.steps) == 30
    assert run.evaluate(HELD_OUT)["eval_loss"] < before - 0.02
    logs = [entry for entry in run.state.log_history if "loss" in entry]
    assert len(logs) == 30
    assert all("grad_norm" not in entry for entry in logs)
    assert [entry["derivative"] for entry in logs] == [step.derivatives[0] for step in run.zo.trajectory.steps]
    rates = [step.rates[0] for step in run.zo.trajectory.steps]
    assert rates == pytest.approx([2e-2 * (1 + math.cos(math.pi * t / 30)) / 2 for t in range(30)])


def test_tensorboard_gets_loss_and_derivative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    reader = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    run = trainer(tmp_path, report_to="tensorboard")
    run.train()
    run.evaluate(HELD_OUT)
    (folder,) = {file.parent for file in (tmp_path / "logs").rglob("events.out.tfevents.*")}
    read = reader.EventAccumulator(str(folder)).Reload()  # evaluation after training is a file of its own
    assert len(read.Scalars("eval/loss")) == 1
    seen = [event.value for event in read.Scalars("train/derivative")]
    assert seen == pytest.approx([step.derivatives[0] for step in run.zo.trajectory.steps])
    assert len(read.Scalars("train/loss")) == 6
    assert "train/grad_norm" not in read.Tags()["scalars"]


def test_a_step_is_that_of_zosgd(tmp_path: Path) -> None:
    """The same batches in a plain loop leave the same bytes."""
    seen: list[Any] = []

    class Watched(ZOTrainer):
        def compute_loss(self, model: Any, inputs: Any, *rest: Any, **others: Any) -> Any:
            seen.append((inputs["input_ids"], others["num_items_in_batch"]))
            return super().compute_loss(model, inputs, *rest, **others)

    run = trainer(tmp_path, cls=Watched, lr_scheduler_type="constant")
    run.train()
    model = tiny(tmp_path)
    optimizer = FIXED.optimizer(zoquant.attach(model))
    assert len(seen) == 12
    assert all(torch.equal(a[0], b[0]) for a, b in zip(seen[::2], seen[1::2], strict=True))
    for ids, items in seen[::2]:
        optimizer.step(partial(loss_of, model, ids, items))
    assert same(values_of(model), values_of(run.model))


@pytest.mark.parametrize("own_loss", [False, True])
def test_micro_batches_are_one_batch(tmp_path: Path, own_loss: bool) -> None:
    """Two micro-batches of two rows are a batch of four, up to rounding."""

    def summed(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        scores = outputs.logits[:, :-1].transpose(1, 2)
        return torch.nn.functional.cross_entropy(scores, labels[:, 1:], reduction="sum") / num_items_in_batch

    def derivatives(**changes: Any) -> list[float]:
        run = trainer(tmp_path, max_steps=3, compute_loss_func=summed if own_loss else None, **changes)
        run.train()
        assert len(run.zo.trajectory.steps) == 3
        return [step.derivatives[0] for step in run.zo.trajectory.steps]

    whole = derivatives()
    parts = derivatives(per_device_train_batch_size=2, gradient_accumulation_steps=2)
    assert parts == pytest.approx(whole, rel=1e-2, abs=1e-4)
    assert any(whole)


def test_a_loss_per_batch_is_averaged_over_micro_batches(tmp_path: Path) -> None:
    class Mean(ZOTrainer):
        def __init__(self, *args: Any, **others: Any) -> None:
            super().__init__(*args, **others)
            self.model_accepts_loss_kwargs = False

    def logged(**changes: Any) -> float:
        run = trainer(tmp_path, cls=Mean, max_steps=1, **changes)
        run.train()
        return float(run.state.log_history[0]["loss"])

    parts = logged(per_device_train_batch_size=2, gradient_accumulation_steps=2)
    assert parts == pytest.approx(logged(), rel=1e-3)


@pytest.mark.parametrize(("stop", "lr"), [(2, None), (4, 5e-3), (5, 5e-3)])
def test_resume_ends_at_the_same_bytes(tmp_path: Path, stop: int, lr: float | None) -> None:
    """Stopped within, at the end of, and after the first epoch of four batches."""
    zo = replace(FIXED, lr=lr, rule="momentum", probes=2)
    chosen: dict[str, Any] = {"zo": zo, "save_strategy": "steps", "save_steps": stop}
    whole = trainer(tmp_path, **chosen)
    whole.train()
    folder = tmp_path / "run" / f"checkpoint-{stop}"
    rest = trainer(tmp_path, **chosen)
    torch.rand(99)
    rest.train(resume_from_checkpoint=str(folder))
    assert rest.zo.trajectory == whole.zo.trajectory
    assert len(rest.zo.trajectory.steps) == 6
    assert same(values_of(rest.model), values_of(whole.model))
    assert rest.calibration is None
    assert (whole.calibration is None) == (lr is not None)


@pytest.mark.parametrize("stop", [1, 2])
def test_resume_with_micro_batches_and_random_losses(tmp_path: Path, stop: int) -> None:
    """Random numbers are alike in all evaluations of a step, others in the next step, and go on after a resume."""
    drawn: list[float] = []

    class Noisy(ZOTrainer):
        def compute_loss(self, model: Any, inputs: Any, *rest: Any, **others: Any) -> Any:
            drawn.append(float(torch.rand(())))
            return super().compute_loss(model, inputs, *rest, **others) * (1 + drawn[-1])

    chosen: dict[str, Any] = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 4}
    whole = trainer(tmp_path, cls=Noisy, save_strategy="steps", save_steps=stop, **chosen)
    whole.train_dataset = ROWS[:12]  # with a rest that fills no step, transformers 4.48 does not resume where it was
    whole.train()
    assert drawn[::2] == drawn[1::2]
    assert len(set(drawn)) == len(drawn) // 2
    rest = trainer(tmp_path, cls=Noisy, **chosen)
    rest.train_dataset = ROWS[:12]
    rest.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{stop}"))
    assert rest.zo.trajectory == whole.zo.trajectory


def test_a_checkpoint_is_small_and_of_use(tmp_path: Path) -> None:
    run = trainer(tmp_path, save_strategy="steps", save_steps=6)
    run.train()
    folder = tmp_path / "run" / "checkpoint-6"
    names = {path.name for path in folder.iterdir()}
    assert {DELTA, TRAJECTORY, "optimizer.pt", "scheduler.pt", "trainer_state.json"} <= names
    assert not {name for name in names if "model" in name or name.endswith(".bin")}
    tuned = zoquant.export(tmp_path / "model.gguf", delta=folder / DELTA, out=tmp_path / "tuned.gguf")
    loaded, _ = zoquant.load(tuned, compute_dtype=torch.float32)
    assert same(values_of(loaded), values_of(run.model))
    replayed = tiny(tmp_path)
    zoquant.replay(folder / TRAJECTORY, zoquant.attach(replayed))
    assert same(values_of(replayed), values_of(run.model))


def test_the_best_checkpoint_comes_back_at_the_end(tmp_path: Path) -> None:
    class Worse(TrainerCallback):  # type: ignore[misc]
        """Lets the held-out loss look best at step 4."""

        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **others: Any) -> None:
            metrics["eval_loss"] = abs(state.global_step - 4.0)

    run = trainer(
        tmp_path, save_strategy="steps", save_steps=2, eval_strategy="steps", eval_steps=2, eval_dataset=HELD_OUT,
        load_best_model_at_end=True, save_total_limit=1, callbacks=[Worse()],
    )  # fmt: skip
    run.train()
    assert len(run.zo.trajectory.steps) == 4
    run.save_model(str(tmp_path / "best"))
    best = tiny(tmp_path)
    zoquant.load_delta(tmp_path / "best" / DELTA, zoquant.attach(best))
    assert same(values_of(best), values_of(run.model))
    kept = json.loads((tmp_path / "run" / "checkpoint-4" / "trainer_state.json").read_text())
    assert kept["global_step"] == 4


def test_missing_numbers_are_calibrated_for_the_schedule(tmp_path: Path) -> None:
    def chosen(**changes: Any) -> Any:
        run = trainer(tmp_path, zo=None, **changes)
        before = values_of(run.model)
        run.create_scheduler(run.args.max_steps)
        assert same(before, values_of(run.model))
        return run.calibration

    short, long = chosen(), chosen(max_steps=600)
    assert short.lr > long.lr
    assert short.eps == long.eps
    assert short.clip is not None
    run = trainer(tmp_path, zo=replace(FIXED, eps=None), warmup_steps=2)
    run.train()
    assert run.calibration is not None
    assert run.zo.trajectory.steps[2].rates[0] == FIXED.lr


def test_calibration_leaves_the_random_numbers_alone(tmp_path: Path) -> None:
    states = []
    for zo in (None, FIXED):
        run = trainer(tmp_path, zo=zo)
        run.create_scheduler(6)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


@pytest.mark.parametrize("scheduled", [False, True])
def test_a_ready_optimizer_and_a_scheduler_of_torch(tmp_path: Path, scheduled: bool) -> None:
    model = tiny(tmp_path)
    zo = zoquant.ZOSGD(zoquant.attach(model), lr=4e-3, probes=3, estimator=OneSided())
    halved = torch.optim.lr_scheduler.StepLR(zo, step_size=2, gamma=0.5) if scheduled else None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = trainer(tmp_path, zo=None, model=model, optimizers=(zo, halved), lr_scheduler_type="constant")
        run.train()
    assert run.zo is zo
    assert run.calibration is None
    rates = [4e-3, 4e-3, 2e-3, 2e-3, 1e-3, 1e-3] if scheduled else [4e-3] * 6
    assert [step.rates[0] for step in zo.trajectory.steps] == rates


def test_a_purely_quantized_model_is_taken_as_it_is(tmp_path: Path) -> None:
    """Such a model carries the marks that make Trainer refuse it; not one of them is touched."""

    class Quantizer:
        is_trainable = is_qat_trainable = False

    model = tiny(tmp_path)
    model.is_quantized, model.hf_quantizer = True, Quantizer()
    marks = dict(model.__dict__)
    run = trainer(tmp_path, model=model, callbacks=[])
    assert {name for name in model.__dict__ if model.__dict__[name] is not marks.get(name)} == set()
    run.train()
    assert run.model is model
    assert model.is_quantized
    assert not model.training
    assert len(run.zo.trajectory.steps) == 6


def test_dropout_stays_off(tmp_path: Path) -> None:
    model = tiny(tmp_path)
    model.model.layers[0].mlp.register_forward_hook(lambda module, _, out: _refuse_training(module, out))
    run = trainer(tmp_path, model=model)
    run.train()
    assert len(run.zo.trajectory.steps) == 6


def _refuse_training(module: Any, out: Any) -> Any:
    assert not module.training
    return out


def test_a_mixture_with_another_trainer(tmp_path: Path) -> None:
    class Both(ZOTrainer, Seq2SeqTrainer):  # type: ignore[misc]
        pass

    args = Seq2SeqTrainingArguments(**{
        name: getattr(arguments(tmp_path), name)
        for name in ("output_dir", "max_steps", "per_device_train_batch_size", "save_strategy", "report_to")
    }, use_cpu=True, disable_tqdm=True)  # fmt: skip
    run = Both(model=tiny(tmp_path), args=args, train_dataset=ROWS, zo=FIXED)
    assert run.train().global_step == 6


def test_label_smoothing_and_a_collator(tmp_path: Path) -> None:
    def collate(rows: list[Any]) -> dict[str, Any]:
        ids = torch.stack([row["input_ids"] for row in rows])
        return {"input_ids": ids, "labels": ids.clone()}

    plain, smooth = (
        trainer(tmp_path, data_collator=collate, label_smoothing_factor=amount, max_steps=2) for amount in (0.0, 0.3)
    )
    plain.train()
    smooth.train()
    assert plain.zo.trajectory.steps != smooth.zo.trajectory.steps
    assert len(smooth.zo.trajectory.steps) == 2


def test_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    class Broken(ZOTrainer):
        bad: Any = ()

        def compute_loss(self, *rest: Any, **others: Any) -> Any:
            loss = super().compute_loss(*rest, **others)
            return loss * math.nan if self.state.global_step in self.bad else loss

    run = trainer(tmp_path, cls=Broken)
    run.bad = (1, 3)
    with pytest.warns(UserWarning, match="step 1: the loss is nan"):
        run.train()
    assert [step.derivatives[0] == 0 for step in run.zo.trajectory.steps] == [False, True, False, True, False, False]
    run = trainer(tmp_path, cls=Broken)
    run.bad = range(2, 6)
    with pytest.warns(UserWarning, match="undone"), pytest.raises(LossError, match="3 times in a row"):
        run.train()
    assert len(run.zo.trajectory.steps) == 5


def test_a_loss_that_raises_leaves_the_model_at_theta(tmp_path: Path) -> None:
    class Stopped(ZOTrainer):
        calls = 0

        def compute_loss(self, *rest: Any, **others: Any) -> Any:
            self.calls += 1
            if self.calls == 6:
                raise KeyboardInterrupt
            return super().compute_loss(*rest, **others)

    run = trainer(tmp_path, cls=Stopped)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    model = tiny(tmp_path)
    zoquant.replay(run.zo.trajectory, zoquant.attach(model))
    assert same(values_of(model), values_of(run.model))
    assert len(run.zo.trajectory.steps) == 2
    run.train()
    assert len(run.zo.trajectory.steps) == 8


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"neftune_noise_alpha": 5.0}, "eval mode"),
        ({"auto_find_batch_size": True}, "per_device_train_batch_size"),
        ({"bf16_full_eval": True}, "casts"),
        ({"zo": Settings(steps=7)}, "max_steps"),
        ({"zo": Settings(batch_size=7)}, "per_device_train_batch_size"),
        ({"zo": Settings(schedule="cosine")}, "lr_scheduler_type"),
    ],
    ids=lambda each: next(iter(each)) if isinstance(each, dict) else "",
)
def test_arguments_that_cannot_be_followed_are_refused(tmp_path: Path, changes: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        trainer(tmp_path, **changes)


def test_several_processes_and_half_precision_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = arguments(tmp_path)
    args.fp16 = True
    with pytest.raises(ValueError, match=r"compute_dtype=torch\.float16"):
        ZOTrainer(model=tiny(tmp_path), args=args, train_dataset=ROWS)
    monkeypatch.setattr(TrainingArguments, "world_size", 2)
    with pytest.raises(ValueError, match="expected one process"):
        ZOTrainer(model=tiny(tmp_path), args=arguments(tmp_path), train_dataset=ROWS)


@pytest.mark.parametrize(
    ("name", "value"),
    [("learning_rate", 1e-4), ("weight_decay", 0.1), ("optim", "sgd"), ("gradient_checkpointing", True)],
)
def test_arguments_without_effect_are_warned_of(tmp_path: Path, name: str, value: Any) -> None:
    with pytest.warns(UserWarning, match=f"{name}.* has no effect"):
        trainer(tmp_path, **{name: value})


def test_usual_arguments_are_not_warned_of(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer(tmp_path)


def test_autocast_is_warned_of_and_works(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="compute_dtype=torch.bfloat16"):
        run = trainer(tmp_path, bf16=True, gradient_checkpointing=True)
    assert run.train().global_step == 6


def test_optimizers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model = tiny(tmp_path)
    views = zoquant.attach(model)
    other = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    rows = zoquant.ZOSGD(zoquant.attach(tiny(tmp_path), exclude="*embed_tokens*"), subspace="rows-columns", probes=1)
    for optimizers, zo, said in (
        ((other, None), None, "expected a zoquant.ZOSGD"),
        ((rows, None), None, "a ZOSGD of rows and columns"),
        ((zoquant.ZOSGD(views), None), FIXED, "one of them"),
        ((None, torch.optim.lr_scheduler.StepLR(other, 1)), None, "its optimizer"),
    ):
        with pytest.raises(ValueError, match=said):
            trainer(tmp_path, model=model, optimizers=optimizers, zo=zo)
    with pytest.raises(ValueError, match="model_init"):
        ZOTrainer(args=arguments(tmp_path), train_dataset=ROWS, model_init=lambda: tiny(tmp_path))
    with pytest.raises(NoViewsError):
        trainer(tmp_path, zo=replace(FIXED, include=("nowhere",)))


def test_checkpoints_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path, save_strategy="steps", save_steps=3)
    run.train()
    folder = tmp_path / "run" / "checkpoint-3"
    other = trainer(tmp_path, zo=replace(FIXED, rule="sign"))
    with pytest.raises(ValueError, match="rule"):
        other.train(resume_from_checkpoint=str(folder))
    moved = tiny(tmp_path)
    zoquant.load_delta(folder / DELTA, zoquant.attach(moved))
    with pytest.raises(BaseMismatchError):
        trainer(tmp_path, model=moved).train(resume_from_checkpoint=str(folder))
    (folder / "optimizer.pt").unlink()
    with pytest.raises(CheckpointError, match=r"optimizer\.pt"):
        trainer(tmp_path).train(resume_from_checkpoint=str(folder))


def test_a_copy_shares_what_the_model_computes_with(tmp_path: Path) -> None:
    """What Trainer.__init__ sees of a quantized model is a shallow copy: moving it moves the model."""
    model = tiny(tmp_path)
    stand_in = copy.copy(model)
    assert stand_in._modules is model._modules
    assert stand_in._parameters is model._parameters
    ids = TOKENS[:2]
    with torch.no_grad():
        assert torch.equal(stand_in(input_ids=ids).logits, model(input_ids=ids).logits)
