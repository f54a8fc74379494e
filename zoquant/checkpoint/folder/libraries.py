"""Other libraries that read a checkpoint: whether they are here, and what they say where they do not take it."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import PathFinder
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path

from zoquant.errors import CheckpointError, ZoquantError, one_line


@contextmanager
def refusing(path: Path, what: str, advice: str) -> Iterator[None]:
    """Turn whatever a library raises into one clear error: what it cannot do, what it says, what to do.

    Raises:
        CheckpointError: it raised anything but an error of zoquant's own.
    """
    try:
        yield
    except ZoquantError:
        raise
    except Exception as error:
        raise CheckpointError(f"{path}: {what}: {one_line(error)} {advice}") from error


def is_installed(name: str) -> bool:
    """Whether a library, perhaps a module of one, could be imported; nothing is."""
    top, *inner = name.split(".")
    spec = find_spec(top)
    for module in accumulate(inner, "{}.{}".format, initial=top):
        if module != top and spec is not None:
            spec = PathFinder.find_spec(module, spec.submodule_search_locations)
    return spec is not None
