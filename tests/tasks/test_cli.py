"""Tasks on the command line: every kind trains, is measured, and leaves its files."""

import json
from pathlib import Path

import pytest

from tests.cli.test_cli import Shell, folder, shell
from tests.tasks.kinds.test_masked import CLOZE, model_of, words
from tests.tasks.kinds.test_masked import ROWS as MASKED_ROWS
from tests.tiny import LABELS, ROWS, write_rows

__all__ = ["folder", "shell"]

DATA = str(Path(__file__).parent / "data")
FEW = ("--steps", "2", "--batch-size", "2", "--lr", "0.01", "--eps", "0.03", "--out", "run")


def test_a_csv_of_ones_own(shell: Shell, folder: Path) -> None:
    rows = [f'"the {thing} broke, here",poor\nthe {thing} shone,fine\n' for thing in ("lamp", "tap")]
    (folder / "own.csv").write_text("review,mood\n" + "".join(rows))
    own = ("--data", "own.csv", "--template", "{review} It was {label}", "--label-column", "mood", "--labels",
           "poor=bad,fine=good")  # fmt: skip
    summary = shell.json("train", "base.gguf", *own, "--eval-data", "own.csv", *FEW)
    assert summary["eval_after"]["examples"] == 4
    assert shell.json("eval", "base.gguf", *own)["accuracy"] == summary["eval_before"]["accuracy"]
    assert "row 1 has no field 'label'" in shell.error("eval", "base.gguf", *own[:4], "--labels", own[-1])


def test_generation_leaves_samples_before_and_after(shell: Shell, folder: Path) -> None:
    task = ("--task", "squad", "--data", f"{DATA}/squad/train.jsonl", "--max-new-tokens", "4")
    summary = shell.json(
        "train", "base.gguf", *task, *FEW, "--eval-data", f"{DATA}/squad/train.jsonl", "--objective", "f1",
        "--eval-every", "0",
    )  # fmt: skip
    assert summary["eval_after"]["primary"] == "f1"
    assert len(summary["eval_after"]["f1_interval"]) == 2
    lines = [json.loads(line) for line in (folder / "run" / "samples.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 0, 2, 2]
    assert lines[0]["references"] == ["Paris", "in Paris"]
    assert "wrote 1" in shell.text("eval", "base.gguf", *task)


def test_a_named_task_by_the_protocol_of_the_papers(shell: Shell, folder: Path) -> None:
    (folder / "copa").mkdir()
    for split in ("train", "validation"):
        (folder / "copa" / f"{split}.jsonl").write_text(Path(DATA, "copa", "train.jsonl").read_text())
    summary = shell.json("train", "base.gguf", "--task", "copa", "--data", ".", "--protocol", "mezo", *FEW)
    assert summary["test"]["examples"] == 2
    assert summary["eval_before"]["examples"] == 1
    assert summary["best_step"] in (1, 2)
    measured = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in measured if "eval_loss" in line] == [0, 1, 2]
    found = shell.json("eval", "base.gguf", "--task", "copa", "--data", ".", "--protocol", "mezo", "--delta",
                       "run")  # fmt: skip
    assert found == summary["test"]
    assert f"| test of step {summary['best_step']} |" in (folder / "run" / "README.md").read_text()
    (folder / "run" / "summary.json").unlink()
    again = shell.json("train", "base.gguf", "--task", "copa", "--data", ".", "--protocol", "mezo", *FEW, "--resume")
    assert (again["best_step"], again["test"]) == (summary["best_step"], summary["test"])


def test_worked_examples_and_surface_form_correction(shell: Shell, folder: Path) -> None:
    task = ("--template", "{sentence} It was {label}", "--labels", LABELS, "--data", "rows.jsonl")
    plain = shell.json("eval", "base.gguf", *task)
    shots = shell.json("eval", "base.gguf", *task, "--shots", "2", "--shots-from", "rows.jsonl", "--seed", "1")
    other = shell.json("eval", "base.gguf", *task, "--shots", "2", "--shots-from", "rows.jsonl", "--seed", "2")
    corrected = shell.json("eval", "base.gguf", *task, "--sfc")
    assert len({found["loss"] for found in (plain, shots, other, corrected)}) == 4
    assert "Name other rows to draw them from" in shell.error("eval", "base.gguf", *task, "--shots", "2")


def test_worked_examples_that_are_not_to_be_had(shell: Shell, folder: Path) -> None:
    """Neither stands in a title what nobody saw, nor is a model loaded to say so: there is none."""
    (folder / "book.txt").write_text("it was good\n\nthe old radio\n")
    shots = ("--shots", "20", "--shots-from")
    said = shell.error("eval", "nowhere.gguf", "--task", "text", "--data", "book.txt", *shots, "book.txt")
    assert "task text: worked examples stand before a prompt" in said
    task = ("--template", "{sentence} It was {label}", "--labels", LABELS, "--data", "rows.jsonl")
    assert "shots is 20, but rows.jsonl holds 12 rows" in shell.error(
        "eval", "nowhere.gguf", *task, *shots, "rows.jsonl"
    )


def test_held_out_rows_may_have_one_label_and_rows_to_learn_from_may_not(shell: Shell, folder: Path) -> None:
    write_rows(folder / "one.jsonl", [row for row in ROWS if row["label"] == "1"])
    task = ("--template", "{sentence} It was {label}", "--labels", LABELS)
    assert shell.json("eval", "base.gguf", *task, "--data", "one.jsonl")["examples"] == 6
    trained = shell.json("train", "base.gguf", *task, "--data", "rows.jsonl", "--eval-data", "one.jsonl", *FEW)
    assert trained["eval_after"]["examples"] == 6
    said = shell.error("train", "base.gguf", *task, "--data", "one.jsonl", "--out", "no")
    assert "one.jsonl: labels: no row has the label '0'. Check labels against the data." in said


def test_a_negative_number_of_worked_examples(shell: Shell, folder: Path) -> None:
    task = ("--template", "{sentence} It was {label}", "--labels", LABELS, "--data", "rows.jsonl")
    assert "shots is -1 and seed 0, expected 0 or more" in shell.error("eval", "base.gguf", *task, "--shots", "-1")


def test_plain_text(shell: Shell, folder: Path) -> None:
    (folder / "book.txt").write_text("it was good\n\nthe old radio\n")
    summary = shell.json("train", "base.gguf", "--task", "text", "--data", "book.txt", *FEW, "--eval-data", "book.txt")
    assert summary["eval_before"]["primary"] == "loss"
    assert "loss" in shell.text("eval", "base.gguf", "--task", "text", "--data", "book.txt")


def test_a_masked_model(shell: Shell, folder: Path) -> None:
    """A folder of BERT or its kind trains as a causal model does, here its plain weights."""
    model_of("bert").save_pretrained(folder / "bert")
    words().save_pretrained(folder / "bert")
    write_rows(folder / "own.jsonl", MASKED_ROWS)
    task = ("--task", "masked", "--data", "own.jsonl", "--template", CLOZE.text, "--labels", "0=bad,1=good")
    moved = ("--role", "dense", "--space", "absolute")
    summary = shell.json("train", "bert", *task, *moved, "--eval-data", "own.jsonl", *FEW)
    assert summary["eval_after"]["primary"] == "accuracy"
    assert summary["eval_after"]["loss"] != summary["eval_before"]["loss"]
    assert shell.json("eval", "bert", *task, "--delta", "run") == summary["eval_after"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--task", "wild"), "task is 'wild', expected one of classification"),
        (("--task", "generation", "--template", "{sentence} {label}", "--metric", "bleu"), "metric is 'bleu'"),
        (("--task", "squad"), "row 1 has no field 'title'"),
        (("--task", "chat"), "no field 'messages'. Its fields are 'sentence', 'label'. Name one of them"),
        (("--task", "sst2", "--objective", "speed"), "objective is 'speed'"),
        (("--task", "sst2", "--protocol", "wild"), "protocol is 'wild'"),
        (("--task", "squad", "--max-new-tokens", "0"), "max_new_tokens is 0, expected at least 1"),
        (("--task", "sst2", "--seed", "-1"), "seed is -1, expected 0 or more"),
        (("--task", "sst2", "--eval-every", "-1"), "eval_every is -1, expected 0 or more"),
        (("--task", "sst2", "--device", "gpu"), "device is 'gpu', expected auto, cpu, or cuda"),
        (("--task", "sst2", "--device", "cuda:99"), "device is 'cuda:99', but torch finds"),
    ],
)
def test_bad_options_leave_no_folder(shell: Shell, folder: Path, options: tuple[str, ...], message: str) -> None:
    assert message in shell.error("train", "base.gguf", "--data", "rows.jsonl", *options, *FEW)
    assert not (folder / "run").exists()
