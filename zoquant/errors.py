"""Every error that zoquant raises on purpose.

A message names the key or file, what was expected, what came, and what to do.
After any of them nothing has changed: no view, no file.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class ZoquantError(Exception):
    """Base of all errors that zoquant raises on purpose."""


class RegistryError(ZoquantError):
    """A plugin cannot be registered or loaded: a claimed name is taken, or the entry point is broken."""


class UnsupportedLayoutError(ZoquantError):
    """A layer hides its continuous values, e.g. in a kernel's private copy. The message says which kernel to use."""


class NoViewsError(ZoquantError):
    """Nothing is left to train: no layer is claimed, or the filters exclude every view."""


class ShapeError(ZoquantError, ValueError):
    """A tensor has another shape than the view it was meant for."""


class ValueRangeError(ZoquantError, ValueError):
    """A value is NaN, infinite, or does not fit the dtype that stores it."""


class CheckpointError(ZoquantError):
    """A checkpoint file is missing, truncated, contradicts itself, or is of an unknown kind."""


class BaseMismatchError(ZoquantError):
    """A delta or a trajectory was made on other base values than these views hold."""


class LossError(ZoquantError):
    """The closure returned no finite number. The step was undone."""


class DataError(ZoquantError):
    """Training data, template or labels do not fit together."""


class ConfigError(ZoquantError, ValueError):
    """A config file or a flag names an unknown key, or gives a key a value that it cannot have.

    Attributes:
        key: the key at fault, None where it is not one key.
    """

    def __init__(self, message: str, key: str | None = None) -> None:
        super().__init__(message)
        self.key = key


class OutputExistsError(ZoquantError, FileExistsError):
    """The place to write to is taken; nothing was overwritten."""


class WriteError(ZoquantError, OSError):
    """A file could not be written, e.g. because the disk is full. Whatever stood there before still stands."""


class RewardError(LossError):
    """A reward from outside gave no number. The step was undone and counts as skipped."""


class FolderInUseError(ZoquantError):
    """Another run writes to the folder. The message says which process, where, and since when."""


class DoesNotFitError(ZoquantError, MemoryError):
    """A forward of one example alone needs more memory than there is. The step was undone."""


class RankError(ZoquantError):
    """Ranks of a distributed run do not hold the same bytes, or one of them failed. The message names the rank."""


class RankMemoryError(RankError, MemoryError):
    """Another rank ran out of memory. The step was undone on all ranks; it may be done again in smaller parts."""


FLOAT16_OVERFLOWS = (
    "If the model computes in float16, numbers above 65504 overflow: load it with compute_dtype and activation_dtype "
    "bfloat16 or float32."
)
"""What messages say of a number that is not finite: a likely cause, and what to do."""


def one_of(known: Iterable[str], given: object) -> str:
    """Return `one of a, b.`, and the nearest of them where one is near."""
    names = list(known)
    near = get_close_matches(str(given), names, n=1)
    return f"one of {', '.join(names)}." + (f" Did you mean {near[0]!r}?" if near else "")


def shown(value: object, depth: int = 2) -> str:
    """Return a value of a config or of data as people write it, a few dozen letters of it: text in quotes."""
    if isinstance(value, list | tuple):
        parts = [shown(part, depth - 1) for part in value[: 8 if depth else 0]]
        return f"[{', '.join([*parts, *(['...'] if len(value) > len(parts) else [])])}]"
    if isinstance(value, dict):
        return "an object"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return f"{value!r:.80}"


def one_line(error: object, most: int = 300) -> str:
    """Return what another library says, in one line of at most so many letters; its kind where it says nothing."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def reason_of(error: Exception) -> str:
    """Return why something failed, on one line and without what Python adds."""
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return one_line(error.strerror if isinstance(error, OSError) and error.strerror else error, 200)
