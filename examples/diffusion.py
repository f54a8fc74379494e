r"""Fine-tune the transformer of a Stable Diffusion 3 pipeline in 4 bits: its scales move, by flow-matching loss.

    pip install 'zoquant[diffusers,bitsandbytes]' pillow sentencepiece
    python examples/diffusion.py --model stabilityai/stable-diffusion-3.5-large --images photos --out tuned

    # on a GGUF file of the same transformer
    python examples/diffusion.py --model stabilityai/stable-diffusion-3.5-large --gguf sd3.5_large-Q4_0.gguf \
        --images photos --out tuned

`photos` holds images and a metadata.jsonl with lines such as {"file_name": "1.png", "text": "a red barn"}. Captions and
images are encoded first; then the text encoders are gone, and only the transformer is in memory. Both probes of a step
see the same images, noise and timesteps. diffusers quantizes to NF4 on a GPU alone; a GGUF file trains on a CPU too.

Source of the loss: Stable Diffusion 3 (arXiv 2403.03206), equations 1-5 and 19: sigma is logit-normal.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import BitsAndBytesConfig, GGUFQuantizationConfig, SD3Transformer2DModel, StableDiffusion3Pipeline
from PIL import Image
from torch import Tensor, nn

import zoquant

TIMESTEPS = 1000
"""What sigma = 1 is to the transformer."""


@dataclass(frozen=True)
class Encoded:
    """Images and captions as the transformer takes them, all of a data set, on the CPU.

    Attributes:
        latents: `[images, channels, height, width]`.
        prompts: embedded captions, `[images, tokens, width]`.
        pooled: pooled captions, `[images, width]`.
        empty: the embedded and the pooled empty caption, which guidance leads away from.
    """

    latents: Tensor
    prompts: Tensor
    pooled: Tensor
    empty: tuple[Tensor, Tensor]

    def __getitem__(self, index: Tensor) -> "Encoded":
        return Encoded(self.latents[index], self.prompts[index], self.pooled[index], self.empty)


@torch.no_grad()
def encode(model: str, folder: Path, size: int, place: dict[str, Any]) -> Encoded:
    """Encode all images and captions of a folder with the pipeline's own encoders, and let go of these."""
    pipeline = StableDiffusion3Pipeline.from_pretrained(model, transformer=None, torch_dtype=place["dtype"])
    pipeline.to(place["device"])
    vae = pipeline.vae
    latents, prompts, pooled = [], [], []
    for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        pixels = pipeline.image_processor.preprocess(Image.open(folder / row["file_name"]).convert("RGB"), size, size)
        latent = vae.encode(pixels.to(**place)).latent_dist.mode()
        prompt, empty, pool, empty_pool = pipeline.encode_prompt(row["text"], None, None)
        latents.append((latent - vae.config.shift_factor) * vae.config.scaling_factor)
        prompts.append(prompt)
        pooled.append(pool)
    parts = [torch.cat(part).cpu() for part in (latents, prompts, pooled)]
    return Encoded(*parts, empty=(empty.cpu(), empty_pool.cpu()))


def open_transformer(model: str, gguf: Path | None, place: dict[str, Any]) -> nn.Module:
    """Return the transformer: the packed blocks of a GGUF file, or the pipeline's own, quantized to NF4."""
    if gguf is not None:
        config: Any = GGUFQuantizationConfig(compute_dtype=place["dtype"])
        found = SD3Transformer2DModel.from_single_file(
            gguf, config=model, subfolder="transformer", quantization_config=config, torch_dtype=place["dtype"]
        )
        return found.to(place["device"]).eval()
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=place["dtype"])
    return SD3Transformer2DModel.from_pretrained(
        model, subfolder="transformer", quantization_config=config, torch_dtype=place["dtype"],
        device_map={"": place["device"]},
    ).eval()  # fmt: skip


def flow_matching(transformer: nn.Module, batch: Encoded, generator: torch.Generator) -> Callable[[], Tensor]:
    """Return the loss of a batch as a closure; its noise and timesteps are drawn now, the same for every call."""
    place = {"device": transformer.device, "dtype": transformer.dtype}
    sigma = torch.randn(len(batch.latents), generator=generator).sigmoid().view(-1, 1, 1, 1)
    noise = torch.randn(batch.latents.shape, generator=generator)
    clean = batch.latents.float()
    noisy, target = (1 - sigma) * clean + sigma * noise, noise - clean
    inputs = {
        "hidden_states": noisy.to(**place),
        "timestep": (sigma.flatten() * TIMESTEPS).to(place["device"]),
        "encoder_hidden_states": batch.prompts.to(**place),
        "pooled_projections": batch.pooled.to(**place),
    }

    def loss() -> Tensor:
        predicted = transformer(**inputs).sample
        return nn.functional.mse_loss(predicted.float(), target.to(predicted.device))

    return loss


@torch.no_grad()
def mean_loss(transformer: nn.Module, data: Encoded, seed: int = 1) -> float:
    """Return the loss over all images at noise and timesteps that are always the same."""
    generator = torch.Generator().manual_seed(seed)
    each = [flow_matching(transformer, data[torch.tensor([i])], generator)() for i in range(len(data.latents))]
    return float(torch.stack(each).mean())


def attach(transformer: nn.Module, gguf: Path | None) -> zoquant.Views:
    """Return the views of the transformer, before its first forward."""
    last = f"transformer_blocks.{transformer.config.num_layers - 1}.norm1_context.*"
    exclude = ("norm_out.*", last) if gguf else None  # diffusers holds their rows in another order than the file
    return zoquant.attach(transformer, exclude=exclude)


def train(transformer: nn.Module, views: zoquant.Views, data: Encoded, args: argparse.Namespace) -> None:
    """Move the scales for some steps; lr, eps and clip are measured first."""
    optimizer = zoquant.ZOSGD(views, seed=args.seed, probes=args.probes)
    generator = torch.Generator().manual_seed(args.seed)

    def batch() -> Callable[[], Tensor]:
        chosen = torch.randint(len(data.latents), (args.batch,), generator=generator)
        return flow_matching(transformer, data[chosen], generator)

    decay = [1 - step / args.steps for step in range(args.steps)]
    print(*optimizer.calibrate([batch(), batch()], schedule=decay).reasons, sep="\n")
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: decay[min(step, args.steps - 1)])
    for step in range(args.steps):
        result = optimizer.step(batch())
        schedule.step()
        if step % args.every == 0:
            print(f"step {step}: loss {result.loss:.4f}, derivative {result.derivative:+.3f}")


@torch.no_grad()
def sample(transformer: nn.Module, data: Encoded, args: argparse.Namespace, file: Path) -> np.ndarray:
    """Draw an image for the first caption and save it; nothing but transformer and decoder is loaded."""
    without = dict.fromkeys(f"{part}{n}" for part in ("tokenizer", "text_encoder") for n in ("", "_2", "_3"))
    pipeline = StableDiffusion3Pipeline.from_pretrained(
        args.model, transformer=transformer, torch_dtype=transformer.dtype, **without
    )
    pipeline.vae.to(transformer.device)
    embedded = {
        "prompt_embeds": data.prompts[:1],
        "pooled_prompt_embeds": data.pooled[:1],
        "negative_prompt_embeds": data.empty[0],
        "negative_pooled_prompt_embeds": data.empty[1],
    }
    image = pipeline(
        **{name: value.to(transformer.device, transformer.dtype) for name, value in embedded.items()},
        height=args.size, width=args.size, num_inference_steps=args.sampling_steps,
        generator=torch.Generator().manual_seed(0),
    ).images[0]  # fmt: skip
    image.save(file)
    return np.asarray(image)


def export(transformer: nn.Module, args: argparse.Namespace) -> nn.Module:
    """Put the delta into the checkpoint's own files, and load these again."""
    delta = args.out / "delta.safetensors"
    if args.gguf:
        tuned = zoquant.export(args.gguf, delta=delta, out=args.out / "tuned.gguf")
        return open_transformer(args.model, tuned, args.place)
    tuned = zoquant.export(args.out / "base", delta=delta, out=args.out / "transformer")
    return zoquant.load(tuned, runtime="vendor", compute_dtype=transformer.dtype, device=args.place["device"])[0]


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Encode, train, sample, save, export, reload; return the loss before, after, and of the reloaded transformer."""
    args = parse(argv)
    args.out.mkdir(parents=True)
    data = encode(args.model, args.images, args.size, args.place)
    transformer = open_transformer(args.model, args.gguf, args.place)
    if not args.gguf:
        transformer.save_pretrained(args.out / "base")
    views = attach(transformer, args.gguf)
    losses = {"before": mean_loss(transformer, data)}
    sample(transformer, data, args, args.out / "before.png")
    train(transformer, views, data, args)
    losses["after"] = mean_loss(transformer, data)
    sample(transformer, data, args, args.out / "after.png")
    zoquant.save_delta(args.out / "delta.safetensors", views)
    losses["reloaded"] = mean_loss(export(transformer, args), data)
    print("loss " + ", ".join(f"{name} {value:.5f}" for name, value in losses.items()))
    return losses


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", required=True, help="folder or name of a Stable Diffusion 3 pipeline")
    parser.add_argument("--gguf", type=Path, help="a GGUF file of its transformer; without it, NF4 of bitsandbytes")
    parser.add_argument("--images", type=Path, required=True, help="folder of images with metadata.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--size", type=int, default=1024, help="pixels of a side")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--probes", type=int, default=1, help="directions a step")
    parser.add_argument("--sampling-steps", type=int, default=28)
    parser.add_argument("--every", type=int, default=50, help="steps between two lines")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    args = parser.parse_args(argv)
    args.place = {"device": torch.device(args.device), "dtype": getattr(torch, args.dtype)}
    return args


if __name__ == "__main__":
    main()
