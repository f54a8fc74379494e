"""Store a model in the layout of AQLM: codes and codebooks by a residual k-means of our own, not by AQLM's search.

    python -m benchmarks.quantize.aqlm <folder or GGUF file> <out>

AQLM fits codes and codebooks to the outputs of each layer for hours on a GPU. This takes minutes on a CPU; it is worse.
The layers are the library's own, and transformers saves them.

Source: aqlm 1.1.7, aqlm/inference.py (`QuantizedLinear`), aqlm/utils.py (`pack_int_data`).
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.quantize.source import load_dense

_KEPT = ("lm_head", "model.embed_tokens")


def quantize(source: Path, out: Path, *, books: int = 2, nbits: int = 8, width: int = 8) -> None:
    """Write a checkpoint of `books` x `nbits` bits in groups of `width` weights, in bfloat16, and the tokenizer."""
    from aqlm import QuantizedLinear
    from transformers import AqlmConfig

    model, tokenizer = load_dense(source)
    for path, module in list(model.named_modules()):
        if type(module) is not nn.Linear or path in _KEPT:
            continue
        layer = QuantizedLinear(
            module.in_features, module.out_features, width, 1, books, nbits, bias=module.bias is not None
        )
        fitted = dict(zip(("codes", "codebooks", "scales"), fit(module.weight, books, nbits, width), strict=True))
        layer.load_state_dict(fitted | ({} if module.bias is None else {"bias": module.bias}))
        model.set_submodule(path, layer)
    model = model.to(torch.bfloat16)
    model.config.quantization_config = AqlmConfig(
        in_group_size=width,
        out_group_size=1,
        num_codebooks=books,
        nbits_per_codebook=nbits,
        linear_weights_not_to_quantize=list(_KEPT),
    )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def fit(weight: Tensor, books: int, nbits: int, width: int, *, rounds: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Fit scales to rows, then one codebook after the other to what the others leave.

    Args:
        weight: `[rows, columns]`, float32.
        books: number of codebooks.
        nbits: bits of a code.
        width: weights in a group.
        rounds: how often every codebook is fitted.

    Returns:
        Codes `[rows, columns / width, books]` as AQLM keeps them, codebooks `[books, 2^nbits, 1, width]`, scales
        `[rows, 1, 1, 1]`.
    """
    scales = weight.norm(dim=1).clamp_min(1e-8) / weight.shape[1] ** 0.5
    vectors = (weight / scales[:, None]).view(-1, width)
    codebooks = torch.zeros(books, 1 << nbits, width)
    codes = torch.zeros(len(vectors), books, dtype=torch.int64)
    for _ in range(rounds):
        for book in range(books):
            others = sum(codebooks[k][codes[:, k]] for k in range(books) if k != book)
            codebooks[book] = k_means(vectors - others, 1 << nbits, start=codebooks[book])
            codes[:, book] = nearest(vectors - others, codebooks[book])
    codes[codes >= 1 << (nbits - 1)] -= 1 << nbits
    kind = torch.int8 if nbits <= 8 else torch.int16
    return codes.view(len(weight), -1, books).to(kind), codebooks[:, :, None], scales[:, None, None, None]


def k_means(vectors: Tensor, count: int, *, start: Tensor, iterations: int = 4, sample: int = 1 << 13) -> Tensor:
    """Return `count` centroids `[count, width]` of vectors `[n, width]`, fitted to some of them."""
    generator = torch.Generator().manual_seed(0)
    part = vectors[torch.randperm(len(vectors), generator=generator)[:sample]]
    centroids = start.clone() if start.any() else part[:count].clone()
    for _ in range(iterations):
        codes = nearest(part, centroids)
        sums = torch.zeros_like(centroids).index_add_(0, codes, part)
        counts = torch.bincount(codes, minlength=count)
        empty = counts == 0
        centroids = torch.where(empty[:, None], part[-count:], sums / counts.clamp_min(1)[:, None])
    return centroids


def nearest(vectors: Tensor, centroids: Tensor, *, chunk: int = 1 << 11) -> Tensor:
    """Return for each vector `[n, width]` the index of the nearest centroid, int64 `[n]`."""
    half = centroids.square().sum(1) / 2
    return torch.cat([(part @ centroids.t() - half).argmax(1) for part in vectors.split(chunk)])


if __name__ == "__main__":
    quantize(Path(sys.argv[1]), Path(sys.argv[2]))
