"""Small AQLM layers and checkpoints, the same bytes every time, written without aqlm."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.checkpoint.folder.llama import write_llama


def aqlm_matrix(
    path: str, rows: int, columns: int, *, books: int = 2, nbits: int = 8, height: int = 1, width: int = 8,
    dtype: torch.dtype = torch.float32, seed: int = 0,
) -> dict[str, Tensor]:  # fmt: skip
    """Return the tensors of a matrix of random codes, codebooks and scales."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 1 << nbits, (rows // height, columns // width, books), generator=generator)
    codes[codes >= 1 << (nbits - 1)] -= 1 << nbits
    return {
        f"{path}.codes": codes.to(torch.int8 if nbits <= 8 else torch.int16 if nbits <= 16 else torch.int32),
        f"{path}.codebooks": (torch.randn(books, 1 << nbits, height, width, generator=generator) * 0.1).to(dtype),
        f"{path}.scales": (torch.rand(rows // height, 1, 1, 1, generator=generator) + 0.5).to(dtype),
    }


def aqlm_folder(
    folder: Path, *, books: int = 2, nbits: int = 8, height: int = 1, width: int = 8,
    dtype: torch.dtype = torch.float32, **changes: Any,
) -> Path:  # fmt: skip
    """Write a llama of one layer as transformers does."""

    def quantize(path: str, weight: Tensor) -> dict[str, Tensor]:
        shape = {"books": books, "nbits": nbits, "height": height, "width": width}
        return aqlm_matrix(path, *weight.shape, **shape, dtype=dtype, seed=len(path))

    config = {
        "quant_method": "aqlm", "num_codebooks": books, "nbits_per_codebook": nbits, "out_group_size": height,
        "in_group_size": width, "linear_weights_not_to_quantize": ["lm_head", "model.embed_tokens"],
    }  # fmt: skip
    return write_llama(folder / "aqlm", quantize, config, dtype=dtype, **changes)


def aqlm_linear(
    *, books: int = 2, nbits: int = 8, height: int = 1, width: int = 8, rows: int = 24, columns: int = 16,
    dtype: torch.dtype = torch.float32, bias: bool = True, numba: bool = False,
) -> nn.Module:  # fmt: skip
    """Return an `aqlm.QuantizedLinear` with the same bytes every time.

    `numba` leaves the kernel on whose outputs differ from call to call, and from the plain product.
    """
    from aqlm import QuantizedLinear

    from zoquant.backends.aqlm.live import AQLMBackend

    layer = QuantizedLinear(columns, rows, width, height, books, nbits, bias=bias, dtype=dtype)
    shape = {"books": books, "nbits": nbits, "height": height, "width": width}
    tensors = aqlm_matrix("a", rows, columns, **shape, dtype=dtype)
    layer.load_state_dict(
        {name.removeprefix("a."): tensor for name, tensor in tensors.items()}
        | ({"bias": torch.linspace(-1, 1, rows, dtype=dtype)} if bias else {})
    )
    module: nn.Module = layer.eval()
    if not numba:
        AQLMBackend().open(module)
    return module


BACKEND_SAMPLES: dict[str, Callable[[], nn.Module]] = {"aqlm.inference.QuantizedLinear": aqlm_linear}
FORMAT_SAMPLES: dict[str, Callable[[Path], Path]] = {"aqlm": aqlm_folder}
