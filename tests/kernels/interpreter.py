"""Triton's interpreter with bfloat16 as a GPU has it: it truncates where a GPU rounds, and multiplies the bits."""

from typing import Any

import pytest


def with_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the interpreter round to bfloat16, ties to even, and multiply bfloat16 as numbers."""
    from triton import language
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    truncate, multiply = InterpreterBuilder.create_fp_trunc, InterpreterBuilder.create_dot

    def rounded(self: Any, source: Any, target: Any) -> Any:
        if (source.dtype.scalar, target.scalar) != (language.float32, language.bfloat16):
            return truncate(self, source, target)
        bits = source.data.view("uint32")
        near = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
        return TensorHandle(near.astype("uint16"), language.bfloat16)

    def wide(handle: Any) -> Any:
        if handle.dtype.scalar != language.bfloat16:
            return handle
        return TensorHandle((handle.data.astype("uint32") << 16).view("float32"), language.float32)

    monkeypatch.setattr(InterpreterBuilder, "create_fp_trunc", rounded)
    monkeypatch.setattr(
        InterpreterBuilder, "create_dot", lambda self, a, b, *rest: multiply(self, wide(a), wide(b), *rest)
    )
