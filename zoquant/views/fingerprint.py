"""A short name for the base values of a view, so that a delta meets only the base that it was made on."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from zoquant.errors import BaseMismatchError


def fingerprint(base: Tensor) -> str:
    """Return 16 hexadecimal digits: BLAKE2b over the shape and the float32 bytes, little endian, in disk order."""
    digest = hashlib.blake2b(str(tuple(base.shape)).encode(), digest_size=8)
    digest.update(base.detach().to("cpu", torch.float32).contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_base(what: str, expected: Mapping[str, str], here: Mapping[str, str]) -> None:
    """Refuse a file, `what`, whose fingerprints by key are not those that are here.

    Raises:
        BaseMismatchError: a key is unknown here or has another fingerprint; the first one is named.
    """
    for key, value in expected.items():
        if key not in here:
            raise BaseMismatchError(
                f"{what}: made for {key}, which does not exist here{_such_as(here)}. Attach the same model with the "
                "same roles, include and exclude."
            )
        if here[key] != value:
            raise BaseMismatchError(
                f"{what}: made on another base: {key} has fingerprint {here[key]}, expected {value}. "
                "Use the checkpoint that the training started from."
            )


def _such_as(here: Mapping[str, str]) -> str:
    """Return a key that there is, for the message."""
    return f", where keys are such as {next(iter(here))}" if here else ""
