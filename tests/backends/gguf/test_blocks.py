"""Codecs agree with gguf-py bit for bit."""

import sys
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants

from tests.backends.gguf.files import random_blocks
from zoquant.backends.gguf.blocks import CODECS, BlockCodec
from zoquant.backends.gguf.blocks.tables import of_gguf_py
from zoquant.backends.gguf.types import TYPES
from zoquant.errors import CheckpointError, ShapeError
from zoquant.native import QuantWeight

ROWS, GROUPS = 5, 3
codecs = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)


def decoded(codec: BlockCodec, blocks: np.ndarray[Any, Any]) -> torch.Tensor:
    codes, values = codec.split(torch.from_numpy(blocks))
    out = torch.full((*codes.shape[:2], codec.block), float("nan"))
    codec.decode(codes, [value.float() for value in values], out)
    return out


@codecs
def test_decode_is_gguf_py_bit_for_bit(codec: BlockCodec) -> None:
    blocks = random_blocks(codec, ROWS, GROUPS)
    expected = quants.dequantize(blocks.reshape(ROWS, -1), GGMLQuantizationType[codec.name])
    assert np.array_equal(decoded(codec, blocks).flatten(1).numpy(), expected)
    assert expected.std() > 0


@codecs
def test_decode_survives_another_size_in_between(codec: BlockCodec) -> None:
    """Scratch memory is shared: what an earlier, larger call left there must not matter."""
    blocks = random_blocks(codec, ROWS, GROUPS)
    first = decoded(codec, blocks)
    decoded(codec, random_blocks(codec, 2 * ROWS, 2 * GROUPS, seed=1))
    assert torch.equal(decoded(codec, blocks), first)


@codecs
def test_decode_in_inference_mode_leaves_nothing_behind(codec: BlockCodec) -> None:
    blocks = random_blocks(codec, ROWS, GROUPS)
    with torch.inference_mode():
        inside = decoded(codec, blocks)
    assert torch.equal(decoded(codec, blocks), inside)


@codecs
def test_doubled_field_doubles_its_share(codec: BlockCodec) -> None:
    codes, values = codec.split(torch.from_numpy(random_blocks(codec, ROWS, GROUPS)))
    parts = []
    for index in range(len(values)):
        out = torch.empty(ROWS, GROUPS, codec.block)
        only = [value.float() * (index == other) for other, value in enumerate(values)]
        codec.decode(codes, only, out)
        parts.append(out.clone())
        codec.decode(codes, [2 * value for value in only], out)
        assert torch.equal(out, 2 * parts[-1])
        assert parts[-1].abs().max() > 0
    if parts:
        whole = torch.empty(ROWS, GROUPS, codec.block)
        codec.decode(codes, [value.float() for value in values], whole)
        torch.testing.assert_close(sum(parts), whole)


@codecs
def test_fields_lie_where_the_offsets_say(codec: BlockCodec) -> None:
    blocks = random_blocks(codec, ROWS, GROUPS)
    codes, values = codec.split(torch.from_numpy(blocks))
    for value, field, start in zip(values, codec.fields, codec.offsets, strict=True):
        assert value.shape == (ROWS, GROUPS)
        assert value.dtype == field.dtype == torch.float16
        assert np.array_equal(value.numpy(), blocks[..., start : start + 2].copy().view(np.float16)[..., 0])
    assert codes.is_contiguous()
    assert codes.shape == (ROWS, GROUPS, codec.nbytes - 2 * len(values))


@codecs
def test_decode_leaves_the_codes_alone(codec: BlockCodec) -> None:
    codes, values = codec.split(torch.from_numpy(random_blocks(codec, ROWS, GROUPS)))
    before = codes.clone()
    codec.decode(codes, [value.float() for value in values], torch.empty(ROWS, GROUPS, codec.block))
    assert torch.equal(codes, before)


@codecs
def test_a_weight_decodes_rows_by_number(codec: BlockCodec) -> None:
    blocks = random_blocks(codec, ROWS, GROUPS)
    codes, values = codec.split(torch.from_numpy(blocks))
    packed = QuantWeight(codec, codes, values)
    whole = packed.dequantize()
    assert torch.equal(whole, decoded(codec, blocks).flatten(1))
    assert torch.equal(packed.decode_rows(torch.tensor([4, 0, 4])), whole[[4, 0, 4]])
    assert torch.equal(packed.decode_rows(slice(1, 4)), whole[1:4])


@codecs
def test_codec_has_fields_or_a_reason(codec: BlockCodec) -> None:
    kind = next(kind for kind in TYPES.values() if kind.name == codec.name)
    assert (codec.block, codec.nbytes) == (kind.block, kind.nbytes)
    assert bool(codec.fields) != bool(codec.reason)


def test_every_type_that_gguf_py_decodes_has_a_codec() -> None:
    known = {kind.name for kind in quants._type_traits}
    assert set(CODECS) == known - {"BF16"}


def test_blocks_of_another_size_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"Q4_0: expected blocks \[rows, groups, 18\], got \(1, 1, 20\)"):
        CODECS["Q4_0"].split(torch.zeros(1, 1, 20, dtype=torch.uint8))


@pytest.mark.parametrize(("name", "what"), [("IQ2_XS", "grids"), ("IQ4_NL", "table")])
def test_what_needs_the_gguf_package_says_so(monkeypatch: pytest.MonkeyPatch, name: str, what: str) -> None:
    assert of_gguf_py(name, what) is getattr(quants, name)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(
        CheckpointError, match=f"{name} blocks need the {what} of the gguf package, .* pip install gguf"
    ):
        of_gguf_py(name, what)
