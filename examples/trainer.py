"""Fine-tune a quantized checkpoint inside an ordinary script around transformers' Trainer.

    pip install 'zoquant[trainer]'
    python examples/trainer.py model.gguf --steps 100

Three lines differ from the same script with `Trainer`; they are marked.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from transformers import DataCollatorForSeq2Seq, EvalPrediction, TrainingArguments

import zoquant
from zoquant.cli.demo import checkpoint, reviews
from zoquant.integrations.transformers import Settings, ZOTrainer  # 1. was: from transformers import Trainer

WORDS = {0: " unhappy", 1: " happy"}


def encode(path: Path, tokenizer: Any) -> list[dict[str, list[int]]]:
    """Return one example a line: the prompt, and a label word that alone is learned."""
    examples = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        prompt = tokenizer(f"Customer review: {row['sentence']} The customer felt")["input_ids"]
        word = tokenizer(WORDS[int(row["label"])], add_special_tokens=False)["input_ids"]
        examples.append({"input_ids": prompt + word, "labels": [-100] * len(prompt) + word})
    return examples


def accuracy(found: EvalPrediction) -> dict[str, float]:
    """Return the share of examples whose label word has every token predicted."""
    told, label = found.predictions[:, :-1], found.label_ids[:, 1:]
    return {"accuracy": float(((told == label) | (label == -100)).all(-1).mean())}


def main() -> None:
    """Train and evaluate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="checkpoint; the demo's if left out")
    parser.add_argument("--train", type=Path, default=reviews("train"), help="JSONL with sentence and label 0 or 1")
    parser.add_argument("--test", type=Path, default=reviews("test"))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--include", nargs="*", help="patterns of the values that move; all if left out")
    parser.add_argument("--out", default="runs/trainer")
    given = parser.parse_args()

    model, tokenizer = zoquant.load(given.model or checkpoint())
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    trainer = ZOTrainer(  # 2. was: trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=given.out,
            max_steps=given.steps,
            per_device_train_batch_size=given.batch,
            per_device_eval_batch_size=2 * given.batch,
            eval_strategy="steps",
            eval_steps=0.5,
            save_strategy="steps",
            save_steps=0.5,
            save_total_limit=1,
            load_best_model_at_end=True,
            logging_steps=0.1,
            report_to="none",
        ),
        zo=Settings(include=tuple(given.include) if given.include else None),  # 3. is new, and may be left out
        train_dataset=encode(given.train, tokenizer),
        eval_dataset=encode(given.test, tokenizer),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        compute_metrics=accuracy,
        preprocess_logits_for_metrics=lambda logits, labels: torch.argmax(logits, dim=-1),
    )
    print("before:", trainer.evaluate())
    trainer.train()
    print("after:", trainer.evaluate())
    trainer.save_model(given.out)
    print(f"delta: {given.out}/delta.safetensors")


if __name__ == "__main__":
    main()
