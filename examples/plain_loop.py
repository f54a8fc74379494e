"""Fine-tune a quantized checkpoint in a plain PyTorch loop, with a scheduler of torch and no trainer.

python examples/plain_loop.py model.gguf --steps 100
"""

import argparse
from pathlib import Path

import torch

import zoquant
from zoquant.cli.demo import TEMPLATE, checkpoint, reviews
from zoquant.tasks import Classification
from zoquant.tasks.rows import read_rows


def main() -> None:
    """Train, evaluate, save delta and trajectory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="checkpoint; the demo's if left out")
    parser.add_argument("--train", type=Path, default=reviews("train"), help="JSONL with sentence and label 0 or 1")
    parser.add_argument("--test", type=Path, default=reviews("test"))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("runs/plain_loop"))
    given = parser.parse_args()

    model, tokenizer = zoquant.load(given.model or checkpoint())
    device = next(model.parameters()).device
    train, test = (Classification(read_rows(path), TEMPLATE, tokenizer, device) for path in (given.train, given.test))
    print(f"before: accuracy {test.evaluate(model).accuracy:.3f}")

    views = zoquant.attach(model)
    optimizer = zoquant.ZOSGD(views, lr=1e-2, eps=3e-2, clip=zoquant.estimators.RobustClip())
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=given.steps, cycle_momentum=False)
    for step in range(given.steps):
        batch = train.batch_of_step(0, step, given.batch)
        result = optimizer.step(lambda batch=batch: train.loss(model, batch))
        scheduler.step()
        if (step + 1) % max(given.steps // 10, 1) == 0:
            print(f"step {step + 1}: loss {result.loss:.3f}, lr {result.lr:.2e}, derivative {result.derivative:+.3f}")

    print(f"after: accuracy {test.evaluate(model).accuracy:.3f}")
    given.out.mkdir(parents=True, exist_ok=True)
    zoquant.save_delta(given.out / "delta.safetensors", views)
    optimizer.trajectory.save(given.out / "trajectory.safetensors")


if __name__ == "__main__":
    main()
