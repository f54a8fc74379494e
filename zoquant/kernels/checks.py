"""What has to hold before compiled code is given the address of a tensor."""

import torch
from torch import Tensor

from zoquant.errors import ShapeError

CPU = torch.device("cpu")


def check_tensor(
    name: str, tensor: Tensor, device: torch.device = CPU, *, dtype: torch.dtype = torch.float32,
    shape: tuple[int, ...] | None = None,
) -> None:  # fmt: skip
    """Refuse a tensor of another dtype, device or shape, or one that is not contiguous."""
    fits = tensor.dtype == dtype and tensor.device == device and tensor.is_contiguous()
    if not fits or (shape is not None and tensor.shape != shape):
        raise ShapeError(
            f"{name}: expected a contiguous {dtype} tensor{'' if shape is None else f' {shape}'} on "
            f"{'the CPU' if device.type == 'cpu' else device}, got {tensor.dtype} {tuple(tensor.shape)} on "
            f"{tensor.device}, strides {tensor.stride()}."
        )
