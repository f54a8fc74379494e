"""Which layers move when nobody says: laws of the choice, and what it comes to on the usual names."""

import random
from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoquant.optim.default_layers import upper_middle

PREFIXES = st.sampled_from(["model.layers", "transformer.h", "encoder.blocks", "blk", ""])


def stack(prefix: str, count: int) -> list[str]:
    lead = f"{prefix}." if prefix else ""
    return [f"{lead}{number}.{part}" for number in range(count) for part in ("attn.q", "mlp.up")]


@pytest.mark.parametrize(
    ("count", "taken"), [(1, [0]), (2, [1]), (3, [1]), (5, [2, 3]), (12, [6, 7, 8]), (30, [*range(15, 24)])]
)
def test_from_half_to_four_fifths(count: int, taken: list[int]) -> None:
    assert upper_middle(stack("model.layers", count)) == tuple(f"model.layers.{number}.*" for number in taken)


@given(prefix=PREFIXES, count=st.integers(1, 100), seed=st.integers())
def test_laws(prefix: str, count: int, seed: int) -> None:
    paths = [*stack(prefix, count), "model.embed_tokens", "lm_head"]
    patterns = upper_middle(paths)
    assert 1 <= len(patterns) <= count
    shuffled = random.Random(seed).sample(paths, len(paths))
    assert upper_middle(shuffled) == patterns, "the order of the paths does not matter"
    moved = [path for path in paths if any(fnmatchcase(f"{path}.d", pattern) for pattern in patterns)]
    assert len(moved) == 2 * len(patterns), "a pattern takes one layer with all its parts"
    assert moved == paths[paths.index(moved[0]) :][: len(moved)], "the layers are neighbours"
    first = paths.index(moved[0]) // 2
    assert first == count // 2


@given(layers=st.integers(2, 12), experts=st.integers(1, 64))
def test_a_list_within_a_layer_is_no_depth(layers: int, experts: int) -> None:
    paths = [f"model.layers.{layer}.mlp.experts.{number}.up" for layer in range(layers) for number in range(experts)]
    assert upper_middle(paths) == upper_middle(stack("model.layers", layers))


def test_the_longest_list_is_the_depth() -> None:
    assert upper_middle([*stack("vision.blocks", 4), *stack("model.layers", 10)]) == tuple(
        f"model.layers.{number}.*" for number in (5, 6, 7)
    )


def test_without_numbers_there_is_no_depth() -> None:
    assert upper_middle(["attention", "output", "layer2"]) == ()
    assert upper_middle([]) == ()
