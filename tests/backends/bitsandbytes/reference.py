"""bitsandbytes' layouts in numpy float64, written from what is published, and random tensors of those layouts."""

import json

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NF4 = np.array([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
])  # fmt: skip
"""QLoRA, appendix E."""


def fp4() -> NDArray[np.float64]:
    """Sign, two bits of exponent, one of mantissa; the one subnormal is 0.0625, and all is over 12."""
    values = [0.0, 0.0625]
    for code in range(2, 8):
        exponent, mantissa = code >> 1, code & 1
        values.append({1: 8.0, 2: 4.0, 3: 2.0}[exponent] * (1 + mantissa / 2))
    return np.array([*values, *(-value for value in values)]) / 12


TABLES = {"nf4": NF4, "fp4": fp4()}


def four_bit(tensors: dict[str, Tensor], at: str) -> NDArray[np.float64]:
    """Dequantize the 4-bit matrix whose weight is called `at`."""
    (name,) = (name for name in tensors if name.startswith(f"{at}.quant_state."))
    state = json.loads(bytes(tensors[name].tolist()))
    data = np.frombuffer(tensors[at].contiguous().view(torch.uint8).numpy().tobytes(), dtype=np.uint8)
    codes = np.stack([data >> 4, data & 15], -1).reshape(-1)
    absmax = tensors[f"{at}.absmax"].numpy()
    if "nested_blocksize" in state:
        first = tensors[f"{at}.nested_quant_map"].double().numpy()[absmax]
        second = tensors[f"{at}.nested_absmax"].double().numpy().repeat(state["nested_blocksize"])
        absmax = first * second[: len(first)] + state["nested_offset"]
    scale: NDArray[np.float64] = absmax.astype(np.float64).repeat(state["blocksize"])[: len(codes)]
    weights: NDArray[np.float64] = (TABLES[state["quant_type"]][codes] * scale).reshape(state["shape"])
    return weights


def eight_bit(tensors: dict[str, Tensor], path: str) -> NDArray[np.float64]:
    """Dequantize the 8-bit matrix of a layer."""
    codes: NDArray[np.float64] = tensors[f"{path}.weight"].double().numpy()
    scale: NDArray[np.float64] = tensors[f"{path}.SCB"].double().numpy()[:, None] / 127
    return codes * scale


def random_four_bit(
    path: str, rows: int, columns: int, *, quant_type: str = "nf4", blocksize: int = 64, nested: bool = False,
    storage: torch.dtype = torch.uint8, seed: int = 0,
) -> dict[str, Tensor]:  # fmt: skip
    """Return the tensors of a 4-bit layer with random codes and absmax."""
    generator = torch.Generator().manual_seed(seed)
    blocks, at = -(-rows * columns // blocksize), f"{path}.weight"
    state = {"quant_type": quant_type, "blocksize": blocksize, "dtype": "float16", "shape": [rows, columns]}
    codes = torch.randint(0, 256, (rows * columns // 2,), generator=generator, dtype=torch.uint8)
    absmax = torch.rand(blocks, generator=generator) * 0.1 + 0.01
    found = {
        at: codes.view(storage).unsqueeze(1),
        f"{at}.absmax": absmax,
        f"{at}.quant_map": torch.tensor(TABLES[quant_type], dtype=torch.float32),
    }
    if nested:
        found[f"{at}.absmax"] = torch.randint(0, 256, (blocks,), generator=generator, dtype=torch.uint8)
        found[f"{at}.nested_absmax"] = torch.rand(-(-blocks // 256), generator=generator) * 0.02 + 0.01
        found[f"{at}.nested_quant_map"] = torch.linspace(-1, 1, 256)
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.05}
    found[f"{at}.quant_state.bitsandbytes__{quant_type}"] = packed_json(state)
    return found


def packed_json(content: object) -> Tensor:
    return torch.tensor(list(json.dumps(content).encode()), dtype=torch.uint8)


def random_eight_bit(path: str, rows: int, columns: int, seed: int = 0) -> dict[str, Tensor]:
    """Return the tensors of an 8-bit layer with random codes and SCB."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{path}.weight": torch.randint(-127, 128, (rows, columns), generator=generator, dtype=torch.int8),
        f"{path}.SCB": torch.rand(rows, generator=generator) * 0.2 + 0.05,
        f"{path}.weight_format": torch.tensor(0, dtype=torch.uint8),
    }
