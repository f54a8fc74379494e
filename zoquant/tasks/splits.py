"""Which rows train, choose and test: files as they are, or drawn as in the papers."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from zoquant.errors import DataError, shown
from zoquant.tasks.rows import DataSource, Row, has_splits, read_rows
from zoquant.tasks.rows.naming import naming
from zoquant.tasks.spec import TaskSettings

_TRAIN, _TEST, _A_LABEL = 1000, 1000, 512
_MASKED_TEST_SEED = 42


@dataclass(frozen=True)
class Parts:
    """The rows of a run.

    Attributes:
        train: to learn from.
        dev: to evaluate on while training; None for nothing.
        test: to evaluate on at the end; None for nothing.
    """

    train: list[Row]
    dev: list[Row] | None
    test: list[Row] | None


def read_parts(
    task: TaskSettings, data: DataSource, eval_data: DataSource | None, protocol: str | None, seed: int
) -> Parts:
    """Read the rows of a run, and see that they fit the task, before any model is loaded.

    Args:
        task: what the rows are for.
        data: training rows; a file, a folder or the Hub, as `read_rows` has it, or `hub` for the data of a named task.
        eval_data: rows to evaluate on, or None. Not with a protocol.
        protocol: None for all rows as they are; `"mezo"` for 1,000 rows to train on, 500 for choices (100 of CB and
            COPA) and 1,000 to test on. Of a masked task it is 512 rows of each label to train on and 512 for choices.
        seed: of the draw.

    Raises:
        DataError: the protocol is unknown or does not fit, or data cannot be read, do not fit the task, or have no
            splits for a protocol.
    """
    parts = _parts(task, data, eval_data, protocol, seed)
    with naming(data):
        task.check(parts.train, learned=True)
    with naming(eval_data or data):
        for rows in (parts.dev, parts.test):
            if rows is not None:
                task.check(rows)
    return parts


def _parts(
    task: TaskSettings, data: DataSource, eval_data: DataSource | None, protocol: str | None, seed: int
) -> Parts:
    """Return the rows of a run as they were read."""
    if protocol is None:
        dev = None if eval_data is None else read_part(task, eval_data, "test")
        return Parts(read_part(task, data, "train"), dev, None)
    if protocol != "mezo" or task.definition is None or eval_data is not None:
        beside = "no evaluation data" if eval_data is None else f"evaluation data {eval_data}"
        raise DataError(
            f"protocol is {protocol!r} with task {task.task} and {beside}: expected mezo, a named task such as sst2, "
            "and no evaluation data, since the protocol draws its own."
        )
    if not parts_differ(task, data):
        raise DataError(
            f"protocol is {protocol!r}, but {data} has no splits, so rows to train on would be rows to test on. Pass a "
            "folder with a file for each split, or a name on the Hub without a split."
        )
    train, test = read_part(task, data, "train"), read_test(task, data, protocol, seed)
    if task.kind == "masked":
        first, second = by_label(train, task.definition.label, _A_LABEL, seed)
        return Parts(first, second, test)
    chosen = drawn(train, seed, _TRAIN + task.definition.dev)
    cut = len(chosen) - min(task.definition.dev, len(chosen) // 2)
    return Parts(chosen[:cut], chosen[cut:], test)


def read_test(task: TaskSettings, data: DataSource, protocol: str | None, seed: int) -> list[Row]:
    """Read the rows to test on: all of them, or with protocol `"mezo"` the 1,000 of its experiments.

    Raises:
        DataError: the protocol is unknown, or data cannot be read.
    """
    rows = read_part(task, data, "test")
    if protocol is None:
        return rows
    if protocol != "mezo":
        raise DataError(f"protocol is {protocol!r}, expected mezo.")
    return drawn(rows, _MASKED_TEST_SEED if task.kind == "masked" else seed, _TEST)


def read_part(task: TaskSettings, data: DataSource, part: str) -> list[Row]:
    """Read the rows to train on or to test on.

    Args:
        task: what they are for.
        data: a file, a folder or the Hub, as `read_rows` has it, or `hub` for the data of a named task.
        part: `"train"` or `"test"`; which split that is, a named task says.

    Raises:
        DataError: they cannot be read, or `hub` stands for no data set.
    """
    known = task.definition
    if str(data) == "hub":
        if known is None:
            raise DataError(f"data is 'hub', but task {task.task} has no data set of its own. Write hub:owner/name.")
        data = f"hub:{known.hub}"
    split = known.test if known is not None and part == "test" else part
    return read_rows(data, split=split, config=known.config if known else None)


def parts_differ(task: TaskSettings, data: DataSource) -> bool:
    """Whether `read_part` reads rows to test on from elsewhere than rows to train on."""
    return str(data) == "hub" or has_splits(data, task.definition.config if task.definition else None)


def drawn(rows: Sequence[Row], seed: int, count: int) -> list[Row]:
    """Return so many rows in the order in which MeZO draws them: the first of numpy's permutation of that seed."""
    order = np.random.RandomState(seed).permutation(len(rows))
    return [rows[i] for i in order[:count]]


def by_label(rows: Sequence[Row], label: str, count: int, seed: int) -> tuple[list[Row], list[Row]]:
    """Return twice so many rows of each label, in an order of the seed; a label with fewer gives half to either.

    Raises:
        DataError: the label of a row is missing, or no text.
    """
    for number, row in enumerate(rows, 1):
        if not isinstance(row.get(label), str):
            raise DataError(
                f"row {number} has the label {shown(row.get(label))} in the column {label!r}, expected one text. Leave "
                "one label a row, or rename the column."
            )
    mixed, totals = drawn(rows, seed, len(rows)), Counter(row[label] for row in rows)
    seen: Counter[str] = Counter()
    parts: tuple[list[Row], list[Row]] = ([], [])
    for row in mixed:
        share = min(count, totals[row[label]] // 2)
        if seen[row[label]] < 2 * share:
            parts[seen[row[label]] >= share].append(row)
        seen[row[label]] += 1
    return parts
