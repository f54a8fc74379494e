"""The noise is what its definition says, everywhere."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zoquant import noise
from zoquant.noise import BLOCK, KINDS, Kind, NoiseSource, gaussian_table, key_hash, reference, step_seed

CPU = torch.device("cpu")
GOLDEN_RADEMACHER = [-1, 1, 1, -1, -1, 1, -1, 1, 1, 1, -1, -1, -1, -1, -1, 1]
GOLDEN_GAUSSIAN = [
    1.3283367156982422,
    0.9217205047607422,
    -0.09947490692138672,
    0.043099403381347656,
    -1.0301647186279297,
    -1.4252033233642578,
]
GOLDEN_HASH = 7017209801313900274
GOLDEN_SEEDS = [4808561972376111626, 2746180200615415209, 1398777264001445488, 5471362344941652013]
GOLDEN_TABLE = "c626a2537fccfd81"
kinds = st.sampled_from(KINDS)
seeds = st.integers(0, 2**64 - 1)
layouts = st.lists(st.tuples(st.text(max_size=12), st.integers(1, 5 * BLOCK)), min_size=1, max_size=6)


def drawn(
    keys: list[str], counts: list[int], kind: Kind, seed: int
) -> list[np.ndarray[tuple[int], np.dtype[np.float32]]]:
    """Draw all keys in one go and cut the result into keys."""
    blocks = [-(-count // BLOCK) for count in counts]
    out = torch.empty(sum(blocks) * BLOCK)
    NoiseSource(keys, counts, kind, CPU).draw(seed, 0, out)
    starts = np.cumsum([0, *blocks]) * BLOCK
    return [out[start : start + count].numpy() for start, count in zip(starts, counts, strict=False)]


@given(layouts, seeds, kinds)
def test_fast_noise_is_the_reference(layout: list[tuple[str, int]], seed: int, kind: Kind) -> None:
    keys, counts = [key for key, _ in layout], [count for _, count in layout]
    for key, count, got in zip(keys, counts, drawn(keys, counts, kind, seed), strict=True):
        np.testing.assert_array_equal(got, reference(seed, key, count, kind))


@given(layouts, seeds, kinds, st.randoms())
def test_order_and_subset_do_not_matter(layout: list[tuple[str, int]], seed: int, kind: Kind, random: object) -> None:
    layout = list(dict(layout).items())
    whole = dict(
        zip([k for k, _ in layout], drawn([k for k, _ in layout], [c for _, c in layout], kind, seed), strict=True)
    )
    some = layout[::-1][: 1 + len(layout) // 2]
    for (key, _), got in zip(some, drawn([k for k, _ in some], [c for _, c in some], kind, seed), strict=True):
        np.testing.assert_array_equal(got, whole[key])


@pytest.mark.parametrize("kind", KINDS)
def test_threads_and_portions_do_not_matter(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    keys, counts = ["a", "b", "c"], [70_000, 1, 3_000]
    expected = drawn(keys, counts, kind, 7)
    try:
        torch.set_num_threads(2)
        monkeypatch.setattr(noise, "_CALLS_AT_A_TIME", 48)
        for got, want in zip(drawn(keys, counts, kind, 7), expected, strict=True):
            np.testing.assert_array_equal(got, want)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stretch_is_a_stretch_of_the_whole(kind: Kind) -> None:
    source = NoiseSource(["a", "b"], [300, 200], kind, CPU)
    whole = source.draw(3, 0, torch.empty(5 * BLOCK)).clone()
    assert torch.equal(source.draw(3, 2 * BLOCK, torch.empty(2 * BLOCK)), whole[2 * BLOCK : 4 * BLOCK])
    other = source.draw(4, 0, torch.empty(5 * BLOCK)).clone()
    assert not torch.equal(other, whole)
    assert torch.equal(source.draw(3, 0, torch.empty(5 * BLOCK)), whole)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x299F31D0_A4093822,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter: tuple[int, ...], key: int, expected: tuple[int, ...]) -> None:
    """The known answers of Random123's kat_vectors."""
    c0, c1, c2, c3 = counter
    got = noise._philox(torch.tensor([c0]), c1, torch.tensor([c2]), torch.tensor([c3]), key)
    assert tuple(int(word) for word in got) == expected


def test_golden_values() -> None:
    assert reference(0, "layers.0.d", 16).tolist() == GOLDEN_RADEMACHER
    assert reference(2**63 - 1, "layers.0.d", 6, "gaussian").tolist() == GOLDEN_GAUSSIAN
    assert key_hash("layers.0.d") == GOLDEN_HASH
    assert [step_seed(0, 0), step_seed(0, 1), step_seed(0, 0, 1), step_seed(-3, 0)] == GOLDEN_SEEDS


def test_gaussian_table() -> None:
    table = gaussian_table().astype(np.float64)
    assert hashlib.sha256(gaussian_table().tobytes()).hexdigest()[:16] == GOLDEN_TABLE
    np.testing.assert_array_equal(table, -table[::-1])
    np.testing.assert_array_equal(table * 2**20, np.round(table * 2**20))
    assert (np.diff(table) >= 0).all()
    assert abs(table.var() - 0.99998) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_moments(kind: Kind) -> None:
    z = reference(11, "key", 200_000, kind).astype(np.float64)
    assert abs(z.mean()) < 0.01
    assert abs(z.var() - 1) < 0.01
    assert abs((z[1:] * z[:-1]).mean()) < 0.01
