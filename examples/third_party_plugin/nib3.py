"""A made-up library, as any other one would be: 3-bit codes, ten to a word, in groups of 30 columns.

    weight[row, column] = (code - 4) * scale[column // 30, row] + offset[column // 30, row]

It knows nothing of zoquant; nib3_zoquant.py is the plugin.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

GROUP, TEN = 30, torch.arange(0, 30, 3)


class Nib3Linear(nn.Module):
    """Keeps its weight dequantized.

    Args:
        words: int32 `[rows, columns / 10]`.
        scale: float16 `[columns / 30, rows]`.
        offset: likewise.
    """

    words: Tensor
    scale: Tensor
    offset: Tensor
    kept: Tensor

    def __init__(self, words: Tensor, scale: Tensor, offset: Tensor) -> None:
        super().__init__()
        for name, tensor in {"words": words, "scale": scale, "offset": offset}.items():
            self.register_buffer(name, tensor)
        self.dequantize()

    def dequantize(self) -> None:
        """Make the weight of the words and values that are there now."""
        codes = (self.words.unsqueeze(-1) >> TEN & 7).flatten(1)
        scale, offset = (values.float().t().repeat_interleave(GROUP, 1) for values in (self.scale, self.offset))
        self.register_buffer("kept", (codes - 4) * scale + offset, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the product with the kept weight, `[..., rows]`."""
        return x @ self.kept.t().to(x.dtype)


def quantize(weight: Tensor) -> dict[str, Tensor]:
    """Return words, scale and offset of a matrix `[rows, columns]`."""
    groups = weight.unflatten(1, (-1, GROUP))
    low, high = groups.aminmax(dim=-1)
    scale = ((high - low) / 7).half()
    offset = (low + 4 * scale.float()).half()
    codes = ((groups - offset.float().unsqueeze(-1)) / scale.float().unsqueeze(-1) + 4).round().clamp(0, 7).int()
    words = (codes.flatten(1).unflatten(1, (-1, 10)) << TEN).sum(-1, dtype=torch.int32)
    return {"words": words, "scale": scale.t().contiguous(), "offset": offset.t().contiguous()}


def load(path: Path) -> nn.Module:
    """Return the model of a folder, on layers of `Nib3Linear`."""
    tensors = load_file(path / "model.safetensors")
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path))
    for name in [name.removesuffix(".words") for name in tensors if name.endswith(".words")]:
        parts = {part: tensors.pop(f"{name}.{part}") for part in ("words", "scale", "offset")}
        model.set_submodule(name, Nib3Linear(**parts))
    model.load_state_dict(tensors, strict=False)
    return model.eval().requires_grad_(False)
