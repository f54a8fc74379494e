"""Tune an image classifier (ViT) whose linear layers torchao holds in 8 bits: the scales move.

    pip install 'zoquant[torchao]' pillow
    python examples/vision.py --model google/vit-base-patch16-224 --images train --out delta.safetensors

`train` has a folder of images for each class, named as the model's config names the class (`id2label`).

Written for transformers 5: before it, `dtype` of `from_pretrained` is called `torch_dtype`.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModelForImageClassification

import zoquant

Batch = tuple[Tensor, Tensor]


def open_model(path: str) -> Any:
    """Return the classifier, its encoder's linear layers in 8 bits with a scale a row; the head stays as it is."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = AutoModelForImageClassification.from_pretrained(path, dtype=torch.float32).eval().requires_grad_(False)
    head = {id(module) for name, module in model.named_modules() if name.endswith("classifier")}
    quantize_(
        model, Int8WeightOnlyConfig(), filter_fn=lambda layer, _: type(layer) is nn.Linear and id(layer) not in head
    )
    return model


def read_batches(model: Any, processor: Any, folder: Path, size: int, seed: int = 0) -> list[Batch]:
    """Return batches of pixels and classes, shuffled."""
    from PIL import Image

    files = [(file, name) for name in model.config.label2id for file in sorted((folder / name).glob("*"))]
    if not files:
        raise ValueError(f"{folder}: expected folders named {', '.join(model.config.label2id)}, got no image in them.")
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(seed)).tolist()
    pixels = [processor(Image.open(files[i][0]).convert("RGB"), return_tensors="pt")["pixel_values"][0] for i in order]
    classes = [int(model.config.label2id[files[i][1]]) for i in order]
    return [
        (torch.stack(pixels[start : start + size]), torch.tensor(classes[start : start + size]))
        for start in range(0, len(files), size)
    ]


def train(model: Any, views: zoquant.Views, batches: list[Batch], *, steps: int) -> list[float]:
    """Move the scales and return the losses; lr, eps and clip are measured first."""
    optimizer = zoquant.ZOSGD(views)

    def loss(batch: Batch) -> Tensor:
        pixels, classes = batch
        return nn.functional.cross_entropy(model(pixel_values=pixels.to(model.device)).logits, classes.to(model.device))

    decay = [1 - step / steps for step in range(steps)]
    optimizer.calibrate([lambda: loss(batches[0]), lambda: loss(batches[-1])], schedule=decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: decay[min(step, steps - 1)])
    losses = []
    for step in range(steps):
        batch = batches[step % len(batches)]
        losses.append(optimizer.step(lambda batch=batch: loss(batch)).loss)
        schedule.step()
    return losses


@torch.no_grad()
def accuracy(model: Any, batches: list[Batch]) -> float:
    """Return the share of images whose class scores highest."""
    right = [(model(pixel_values=pixels.to(model.device)).logits.argmax(-1).cpu() == y).sum() for pixels, y in batches]
    return float(sum(right)) / sum(len(y) for _, y in batches)


def main(argv: list[str] | None = None) -> list[float]:
    """Load, train, save the delta; return the loss of every step."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", required=True, help="folder or name of an image classifier")
    parser.add_argument("--images", type=Path, required=True, help="a folder of images for each class")
    parser.add_argument("--out", type=Path, required=True, help="a new file of the delta")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=16)
    args = parser.parse_args(argv)
    model, processor = open_model(args.model), AutoImageProcessor.from_pretrained(args.model)
    batches = read_batches(model, processor, args.images, args.batch)
    views = zoquant.attach(model)
    losses = train(model, views, batches, steps=args.steps)
    zoquant.save_delta(args.out, views)
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}, accuracy {accuracy(model, batches):.3f}")
    return losses


if __name__ == "__main__":
    main()
