"""Optimize a reward: answers shall be JSON objects with the right keys.

    python examples/json_reward.py model.gguf --out run

The reward is a Python function here. A program in another language does as well: it reads the generations as JSON from
its standard input and prints a number.

    zoquant train model.gguf --task generation --objective reward --reward "./score" ...
"""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path

from zoquant.tasks import TaskSettings
from zoquant.tasks.rewards import Generated
from zoquant.training import Config, Settings, finetune

TASK = TaskSettings(
    "generation", "Write {name}, aged {age}, as JSON.\nJSON: {label}", metric="exact-match", max_new_tokens=24
)
ROWS = [
    {"name": name, "age": str(age), "label": json.dumps({"name": name, "age": age})}
    for name in ("Ada", "Ben", "Cleo", "Dan")
    for age in (7, 31, 64)
]
_PARTS = (r"^\s*\{", r'"name"\s*:', r'"age"\s*:\s*\d+', r"\}\s*$")


def valid_json(generations: Sequence[Generated]) -> float:
    """Return the mean reward: half for what looks like it, all of it for an object with a name and an age."""
    return sum(_reward(each.text) for each in generations) / len(generations)


def _reward(text: str) -> float:
    looks = sum(bool(re.search(part, text)) for part in _PARTS) / len(_PARTS)
    try:
        found = json.loads(text)
    except ValueError:
        return looks / 2
    return 1.0 if isinstance(found, dict) and {"name", "age"} <= set(found) else looks / 2


def main(arguments: list[str] | None = None) -> None:
    """Train, and show what the model writes before and after."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=100)
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    data = given.out / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    settings = Settings(steps=given.steps, batch_size=6, lr=1e-2, eps=3e-2)
    config = Config(given.model, str(data), TASK, eval_data=str(data), objective="reward", settings=settings)
    finetune(config, given.out / "run", reward=valid_json)
    for line in (given.out / "run" / "samples.jsonl").read_text(encoding="utf-8").splitlines():
        sample = json.loads(line)
        print(f"after {sample['step']} steps: {sample['text']!r}")


if __name__ == "__main__":
    main()
