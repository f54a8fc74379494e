"""Maximize F1 on a set of questions: a metric without a gradient, measured on what the model writes.

    python examples/qa_f1.py model.gguf --out run
    python examples/qa_f1.py model.gguf --data my-questions.jsonl --out run

Each row has `context`, `question` and `answer`. Every probe of a step generates answers for its batch and scores
them, so a step costs two generations of the batch.
"""

import argparse
import json
from pathlib import Path

from zoquant.tasks import TaskSettings
from zoquant.training import Config, Settings, finetune

TASK = TaskSettings(
    "generation", "{context}\nQuestion: {question}\nAnswer: {label}", label_column="answer", max_new_tokens=12
)
PEOPLE = {"Ada": "the library", "Ben": "the harbour", "Cleo": "a bakery", "Dan": "the old mill", "Eve": "the zoo"}
THINGS = ("a red bicycle", "two cats", "a piano", "an atlas")


def questions() -> list[dict[str, str]]:
    """Return questions about who works where and owns what."""
    rows = []
    for name, place in PEOPLE.items():
        for thing in THINGS:
            context = f"{name} works at {place} and owns {thing}."
            rows.append({"context": context, "question": f"Where does {name} work?", "answer": place})
            rows.append({"context": context, "question": f"What does {name} own?", "answer": thing})
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Train, and say what F1 was before and after."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, help="rows to train on; not given: questions of the example's own")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=8)
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    data, held_out = given.data, given.data
    if data is None:
        data, held_out = given.out / "train.jsonl", given.out / "test.jsonl"
        rows = questions()
        for path, part in ((data, rows[:32]), (held_out, rows[32:])):
            path.write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    settings = Settings(steps=given.steps, batch_size=given.batch_size, lr=1e-2, eps=3e-2)
    config = Config(given.model, str(data), TASK, eval_data=str(held_out), objective="f1", settings=settings)
    summary = finetune(config, given.out / "run")
    print(f"F1 before {summary['eval_before']['f1']:.3f}, after {summary['eval_after']['f1']:.3f}")


if __name__ == "__main__":
    main()
