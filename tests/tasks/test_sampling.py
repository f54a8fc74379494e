"""Which examples a batch has."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from zoquant.tasks.sampling import Draws, by_length


@given(st.lists(st.integers(0, 2), min_size=3, max_size=20), st.integers(1, 8), st.integers(0, 5))
def test_every_group_goes_through_all_its_examples(groups: list[int], size: int, seed: int) -> None:
    groups = [0, 1, 2, *groups]
    draws, share = Draws(groups), size // 3
    seen: Counter[int] = Counter()
    for step in range(60):
        chosen = draws.of_step(seed, step, size)
        assert len(chosen) == size
        assert chosen == Draws(groups).of_step(seed, step, size)
        seen.update(chosen)
        if share:
            assert min(Counter(groups[i] for i in chosen).values()) >= share
    assert set(seen) == set(range(len(groups))) or size < 3
    for group in range(3):
        times = [seen[i] for i, other in enumerate(groups) if other == group]
        assert max(times) - min(times) <= 1 or size < 3


@given(st.integers(1, 7), st.integers(1, 20), st.integers(0, 30))
def test_over_as_many_steps_as_groups_every_group_has_as_many_examples(kinds: int, size: int, first: int) -> None:
    size = max(size, kinds)
    draws = Draws(list(range(kinds)) * 3)
    had = Counter(group % kinds for step in range(first, first + kinds) for group in draws.of_step(0, step, size))
    assert had == dict.fromkeys(range(kinds), size)


def test_a_batch_smaller_than_the_groups_still_sees_them_all() -> None:
    seen = {groups for step in range(6) for groups in Draws([0, 1, 2, 3, 4, 5]).of_step(0, step, 1)}
    assert seen == {0, 1, 2, 3, 4, 5}


def test_a_group_without_an_example_has_no_share() -> None:
    assert sorted(Draws([1, 1, 3]).of_step(0, 0, 4)) == [0, 1, 2, 2]


def test_examples_of_like_length_stand_together() -> None:
    assert list(by_length([5, 1, 4, 2], 3)) == [[1, 3, 2], [0]]
