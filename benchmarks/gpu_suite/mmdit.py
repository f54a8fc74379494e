"""The matrices of Stable Diffusion 3's transformer: two streams of tokens that meet in every attention.

It has the shapes and the products of the published model, so it costs what that costs. Norms have no weights of their
own where the model's have none; what a checkpoint would be needed for, the meaning of the outputs, is not here.

Source: Esser et al., arXiv 2403.03206, figure 2; the config of stabilityai/stable-diffusion-3.5-large.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, rms_norm, scaled_dot_product_attention, silu

PATCH = 2


class Stream(nn.Module):
    """One of the two streams of a block: modulation, projections and a feed-forward layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 6 * width)
        self.qkv = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def heads(self, x: Tensor, count: int) -> list[Tensor]:
        """Return queries, keys and values, `[batch, heads, tokens, size]`; queries and keys are normed."""
        parts = [each(x).unflatten(-1, (count, -1)).transpose(1, 2) for each in self.qkv]
        return [*(rms_norm(part, part.shape[-1:]) for part in parts[:2]), parts[2]]


class Block(nn.Module):
    """One attention over both streams, and a feed-forward layer for each."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.count = heads
        self.streams: Any = nn.ModuleList(Stream(width) for _ in range(2))

    def forward(self, tokens: list[Tensor], time: Tensor) -> list[Tensor]:
        given = [stream.modulation(silu(time)).unsqueeze(1).chunk(6, -1) for stream in self.streams]
        parts = [
            stream.heads(_normed(x) * (1 + m[0]) + m[1], self.count)
            for stream, x, m in zip(self.streams, tokens, given, strict=True)
        ]
        q, k, v = (torch.cat(part, 2) for part in zip(*parts, strict=True))
        joined = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        mixed = torch.split(joined, [x.shape[1] for x in tokens], 1)
        return [self._after(*each) for each in zip(self.streams, tokens, mixed, given, strict=True)]

    def _after(self, stream: Stream, x: Tensor, mixed: Tensor, m: tuple[Tensor, ...]) -> Tensor:
        x = x + m[2] * stream.out(mixed)
        out: Tensor = stream.down(gelu(stream.up(_normed(x) * (1 + m[4]) + m[5]), approximate="tanh"))
        return x + m[3] * out


class MMDiT(nn.Module):
    """The transformer.

    Args:
        latent: height and width of a latent.
        layers: number of blocks.
        heads: heads of an attention.
        width: channels of a token.
        text: channels of the text's tokens.
        pooled: channels of the pooled text.
        channels: channels of a latent.
        positions: height and width of the table of positions.
    """

    def __init__(
        self, *, latent: int, layers: int, heads: int, width: int, text: int, pooled: int, positions: int,
        channels: int = 16,
    ) -> None:  # fmt: skip
        super().__init__()
        self.latent, self.text, self.pooled, self.channels = latent, text, pooled, channels
        self.patch = nn.Linear(channels * PATCH**2, width)
        self.positions = nn.Parameter(torch.empty(positions**2, width))
        self.context = nn.Linear(text, width)
        self.time = nn.ModuleList([nn.Linear(256, width), nn.Linear(width, width)])
        self.summary = nn.ModuleList([nn.Linear(pooled, width), nn.Linear(width, width)])
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.last_modulation = nn.Linear(width, 2 * width)
        self.last = nn.Linear(width, channels * PATCH**2)

    def forward(self, latents: Tensor, text: Tensor, pooled: Tensor, time: Tensor) -> Tensor:
        """Return `[batch, patches, channels * 4]` of latents `[batch, channels, latent, latent]`.

        Args:
            latents: what is denoised.
            text: `[batch, tokens, text]`.
            pooled: `[batch, pooled]`.
            time: features of the time step, `[batch, 256]`.
        """
        patches = nn.functional.pixel_unshuffle(latents, PATCH).flatten(2).transpose(1, 2)
        tokens = [self.patch(patches) + self.positions[: patches.shape[1]], self.context(text)]
        at = sum(second(silu(first(x))) for (first, second), x in ((self.time, time), (self.summary, pooled)))
        for block in self.blocks:
            tokens = block(tokens, at)
        shift, scale = self.last_modulation(silu(at)).unsqueeze(1).chunk(2, -1)
        found: Tensor = self.last(_normed(tokens[0]) * (1 + scale) + shift)
        return found


def _normed(x: Tensor) -> Tensor:
    return layer_norm(x, x.shape[-1:])
