"""The noise is what its definition says, everywhere."""

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.threads import threads
from zoquant.kernels.noise import source
from zoquant.kernels.noise.definition import (
    BLOCK,
    KINDS,
    UNITS,
    Kind,
    Noise,
    as_noise,
    gaussian_table,
    key_hash,
    reference,
    square_table,
    step_seed,
    unit_moves,
)
from zoquant.kernels.noise.source import NoiseSource, philox

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
GOLDEN_SPHERE = [
    0.4510696828365326,
    1.114800214767456,
    1.045290470123291,
    1.231333613395691,
    -1.0836071968078613,
    0.8779163360595703,
]
GOLDEN_SPARSE = [1, 0, 0, 0, -1, 1, 0, 0, 1, 1, 0, 0]
GOLDEN_VIEWS = [False, True, True, True, True, False, False, True]
GOLDEN_LAYERS = [True, True, False, False, False, True, False, True]
GOLDEN_TABLE = "c626a2537fccfd81"
NOISES = [Noise(kind) for kind in KINDS] + [Noise(kind, 0.25, unit) for kind in KINDS for unit in UNITS]
noises = st.sampled_from(NOISES)
seeds = st.integers(0, 2**64 - 1)
layouts = st.lists(st.tuples(st.text(max_size=12), st.integers(1, 5 * BLOCK)), min_size=1, max_size=6)


def drawn(
    keys: list[str], counts: list[int], kind: Kind | Noise, seed: int
) -> list[np.ndarray[tuple[int], np.dtype[np.float32]]]:
    """Draw all keys in one go and cut the result into keys."""
    blocks = [-(-count // BLOCK) for count in counts]
    out = torch.empty(sum(blocks) * BLOCK)
    NoiseSource(keys, counts, kind, CPU).draw(seed, 0, out)
    starts = np.cumsum([0, *blocks]) * BLOCK
    return [out[start : start + count].numpy() for start, count in zip(starts, counts, strict=False)]


@given(layouts, seeds, noises)
def test_fast_noise_is_the_reference(layout: list[tuple[str, int]], seed: int, kind: Noise) -> None:
    keys, counts = [key for key, _ in layout], [count for _, count in layout]
    for key, count, got in zip(keys, counts, drawn(keys, counts, kind, seed), strict=True):
        np.testing.assert_array_equal(got, reference(seed, key, count, kind))


@given(layouts, seeds, noises, st.randoms())
def test_order_and_subset_do_not_matter(layout: list[tuple[str, int]], seed: int, kind: Noise, random: object) -> None:
    layout = list(dict(layout).items())
    whole = dict(
        zip([k for k, _ in layout], drawn([k for k, _ in layout], [c for _, c in layout], kind, seed), strict=True)
    )
    some = layout[::-1][: 1 + len(layout) // 2]
    for (key, _), got in zip(some, drawn([k for k, _ in some], [c for _, c in some], kind, seed), strict=True):
        np.testing.assert_array_equal(got, whole[key])


@pytest.mark.parametrize("kind", NOISES)
def test_threads_and_portions_do_not_matter(kind: Noise, monkeypatch: pytest.MonkeyPatch) -> None:
    keys, counts = ["a", "b", "c"], [70_000, 1, 3_000]
    expected = drawn(keys, counts, kind, 7)
    monkeypatch.setattr(source, "_CALLS_AT_A_TIME", 48)
    with threads(2):
        for got, want in zip(drawn(keys, counts, kind, 7), expected, strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("kind", NOISES)
def test_what_is_kept_of_a_seed_outlives_other_seeds(kind: Noise) -> None:
    source = NoiseSource(["a", "b", "c"], [300, 200, 5], kind, CPU)
    first = source.draw(3, 0, torch.empty(6 * BLOCK)).clone()
    source.prepare([4])
    source.accumulate(torch.zeros(6 * BLOCK), 0, [4], [1.0])
    assert torch.equal(source.draw(3, 0, torch.empty(6 * BLOCK)), first)
    source.prepare([])
    assert torch.equal(source.draw(3, 0, torch.empty(6 * BLOCK)), first)


@pytest.mark.parametrize("kind", NOISES)
def test_a_stretch_is_a_stretch_of_the_whole(kind: Noise) -> None:
    source = NoiseSource(["a", "b"], [300, 200], kind, CPU)
    whole = source.draw(3, 0, torch.empty(5 * BLOCK)).clone()
    assert torch.equal(source.draw(3, 2 * BLOCK, torch.empty(2 * BLOCK)), whole[2 * BLOCK : 4 * BLOCK])
    other = source.draw(4, 0, torch.empty(5 * BLOCK)).clone()
    assert (kind.density < 1 and kind.unit != "element") or not torch.equal(other, whole)
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
    halves = torch.tensor([[key & 0xFFFFFFFF], [7]]), torch.tensor([[key >> 32], [9]])
    got = philox(torch.tensor([c0]), c1, torch.tensor([c2]), torch.tensor([c3]), *halves)
    assert tuple(int(word[0, 0]) for word in got) == expected
    assert tuple(int(word[1, 0]) for word in got) != expected


def test_golden_values() -> None:
    assert reference(0, "layers.0.d", 16).tolist() == GOLDEN_RADEMACHER
    assert reference(2**63 - 1, "layers.0.d", 6, "gaussian").tolist() == GOLDEN_GAUSSIAN
    assert key_hash("layers.0.d") == GOLDEN_HASH
    assert reference(7, "layers.0.d", 6, "sphere").tolist() == GOLDEN_SPHERE
    assert reference(7, "layers.0.d", 12, Noise(density=0.5)).tolist() == GOLDEN_SPARSE
    keys = [f"layers.{n}.d" for n in range(8)]
    assert [unit_moves(7, key, Noise(density=0.5, unit="view")) for key in keys] == GOLDEN_VIEWS
    assert [unit_moves(7, key, Noise(density=0.5, unit="layer")) for key in keys] == GOLDEN_LAYERS
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


@given(st.lists(seeds, min_size=1, max_size=5), noises, st.integers(1, 3), st.floats(-2, 2))
def test_many_seeds_are_accumulated_in_their_order(seeds: list[int], noise: Noise, start: int, amount: float) -> None:
    """Each product and each sum is rounded to float32, in the order of the seeds."""
    keys, counts = ["a", "b"], [300, 200]
    source = NoiseSource(keys, counts, noise, CPU)
    amounts = [amount * (1 + n) for n in range(len(seeds))]
    got = torch.full((2 * BLOCK,), 0.1)
    source.prepare(seeds)
    source.accumulate(got, start * BLOCK, seeds, amounts)
    expected = np.full(5 * BLOCK, np.float32(0.1))
    for seed, each in zip(seeds, amounts, strict=True):
        for key, place, count in (("a", 0, 300), ("b", 3 * BLOCK, 200)):
            expected[place : place + count] += np.float32(each) * reference(seed, key, count, noise)
    room = slice(start * BLOCK, (start + 2) * BLOCK)
    inside = np.concatenate([np.arange(300), np.arange(3 * BLOCK, 3 * BLOCK + 200)])
    inside = inside[(inside >= room.start) & (inside < room.stop)]
    np.testing.assert_array_equal(got.numpy()[inside - room.start], expected[inside])


@given(seeds, st.integers(1, 2000))
def test_the_sphere_has_the_norm_of_its_length(seed: int, count: int) -> None:
    z = reference(seed, "key", count, "sphere").astype(np.float64)
    assert np.sqrt((z**2).sum()) == pytest.approx(np.sqrt(count), rel=2e-3 if count < 3 else 1e-5)


@pytest.mark.parametrize("unit", UNITS)
def test_the_share_of_sparse_noise(unit: str) -> None:
    noise = Noise("rademacher", 0.25, unit)  # type: ignore[arg-type]
    z = np.stack([reference(3, f"layers.{n}.d", 20, noise) for n in range(1000)])
    assert abs((z != 0).mean() - 0.25) < 0.05
    if unit != "element":
        assert ((z != 0).all(axis=1) | (z == 0).all(axis=1)).all()
    assert abs((reference(3, "a", 10_000, Noise("gaussian", 0.25)) != 0).mean() - 0.25) < 0.02


def test_views_of_one_layer_are_in_or_out_together() -> None:
    noise = Noise(density=0.5, unit="layer")
    assert all(unit_moves(s, "l.0.d", noise) == unit_moves(s, "l.0.scale[3, 2]", noise) for s in range(50))
    views = Noise(density=0.5, unit="view")
    assert any(unit_moves(s, "l.0.d", views) != unit_moves(s, "l.0.m", views) for s in range(50))


def test_the_square_table_sums_exactly() -> None:
    exact = (gaussian_table().astype(np.float64) ** 2 * 2**32).round()
    np.testing.assert_array_equal(square_table(), exact)
    assert int(square_table().max()) * 2**26 < 2**63


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (("uniform",), "noise is 'uniform', expected one of rademacher, gaussian, sphere."),
        (("gaussian", 0.0), "density of the noise is 0.0, expected from 1/65536 to 1."),
        (("gaussian", 1e-9), "density of the noise is 1e-09, expected from 1/65536 to 1."),
        (("gaussian", 1.5), "density of the noise is 1.5, expected from 1/65536 to 1."),
        (("gaussian", float("nan")), "density of the noise is nan, expected from 1/65536 to 1."),
        (("gaussian", 0.5, "row"), "unit of the noise is 'row', expected one of element, view, layer."),
    ],
)
def test_bad_noise_is_refused(fields: tuple[Any, ...], text: str) -> None:
    with pytest.raises(ValueError, match="noise") as caught:
        Noise(*fields)
    assert str(caught.value) == text
    assert as_noise("gaussian") == Noise("gaussian")
