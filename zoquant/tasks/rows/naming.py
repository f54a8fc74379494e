"""Which row, or which data, an error speaks of."""

from collections.abc import Iterator
from contextlib import contextmanager

from zoquant.errors import DataError


@contextmanager
def naming(what: object) -> Iterator[None]:
    """Let what is raised within begin with the data, or the row, that it speaks of."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{what}: {error}") from error
