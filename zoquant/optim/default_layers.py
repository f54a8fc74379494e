"""Which layers move when rows and columns do and nobody said which: those from half to four fifths of the depth.

The lower layers answer a probe with much noise for little signal, and the uppermost ones add little signal of their
own. In a linearized model of sentiment classification the layers 15 to 23 of 30 have the most signal for the noise, and
with them and a direction for each example a run reaches in a quarter of the forwards what two-point probes of all
layers reach.

Source: our study, docs/project/study.md; one model and one task, so it is a default and no law.
"""

from collections.abc import Iterable


def upper_middle(paths: Iterable[str]) -> tuple[str, ...]:
    """Return patterns on keys for the layers from half to four fifths of the depth, at least one.

    The depth is counted in the list of modules with the most numbers, such as `model.layers.<n>`. Of a path the first
    number alone counts: a list within a layer, such as that of its experts, is no depth.

    Returns:
        A pattern a layer, `"model.layers.15.*"`; none if no path has a number.
    """
    stacks: dict[tuple[str, ...], set[int]] = {}
    for path in paths:
        parts = path.split(".")
        places = [place for place, part in enumerate(parts) if part.isascii() and part.isdigit()]
        if places:
            stacks.setdefault(tuple(parts[: places[0]]), set()).add(int(parts[places[0]]))
    if not stacks:
        return ()
    prefix, numbers = max(stacks.items(), key=lambda stack: len(stack[1]))
    count = len(numbers)
    taken = sorted(numbers)[count // 2 : max(count // 2 + 1, 4 * count // 5)]
    return tuple(".".join([*prefix, str(number), "*"]) for number in taken)
