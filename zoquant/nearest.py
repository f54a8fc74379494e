"""A name that is not known, in a message: which ones are, and which is the nearest."""

from collections.abc import Iterable
from difflib import get_close_matches


def one_of(known: Iterable[str], given: object) -> str:
    """Return `one of a, b.`, and the nearest of them where one is near."""
    names = list(known)
    near = get_close_matches(str(given), names, n=1)
    return f"one of {', '.join(names)}." + (f" Did you mean {near[0]!r}?" if near else "")
