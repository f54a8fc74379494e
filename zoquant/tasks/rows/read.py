"""From a path or a name on the Hub to rows."""

from pathlib import Path

from zoquant.errors import DataError
from zoquant.tasks.rows.files import ENDINGS, read_file
from zoquant.tasks.rows.hub import HUB, read_hub, read_saved
from zoquant.tasks.rows.in_memory import DataSource, RowsInMemory
from zoquant.tasks.rows.row import Row

_TABLE = "state.json"
_SAVED = ("dataset_dict.json", _TABLE)


def read_rows(source: DataSource, *, split: str = "train", config: str | None = None) -> list[Row]:
    """Read data.

    Args:
        source: rows in memory; a file; a folder with a file or files for each split, as on the Hub (`train.jsonl`,
            `train-00000-of-00001.parquet`, `data/train-*.parquet`); a folder that `datasets` saved; or
            `hub:owner/name`, `hub:owner/name:split`, `hub:owner/name:config:split`, which is downloaded by `datasets`.
        split: which part of a folder or of the Hub, unless the source names one.
        config: which folder inside the folder, or configuration on the Hub, unless the source names one.

    Returns:
        The rows. Numbers and truth values are text; lists and objects stay.

    Raises:
        DataError: there is nothing to read, or it cannot be read; what is wrong is named.
    """
    if isinstance(source, RowsInMemory):
        return source.rows
    if str(source).startswith(HUB):
        return read_hub(str(source), split=split, config=config)
    path = Path(source)
    if not path.is_dir():
        return read_file(path)
    inner = _inner(path, config)
    if any((inner / name).exists() for name in _SAVED):
        return read_saved(inner, split)
    return [row for file in _files_of(inner, split) for row in read_file(file)]


def has_splits(source: DataSource, config: str | None = None) -> bool:
    """Whether a source, as `read_rows` has it, has other rows for another split; of a name on the Hub its form tells.

    A file and rows in memory have no splits, nor has a source that names its split, nor a folder to which `datasets`
    saved a single table.
    """
    if isinstance(source, RowsInMemory):
        return False
    if str(source).startswith(HUB):
        return ":" not in str(source).removeprefix(HUB)
    path = Path(source)
    return not path.is_file() and not (_inner(path, config) / _TABLE).exists()


def _inner(folder: Path, config: str | None) -> Path:
    """Return the folder of a configuration, or the folder itself if it has none."""
    return folder / config if config and (folder / config).is_dir() else folder


def _files_of(folder: Path, split: str) -> list[Path]:
    """Return the files of a split in the order of their names; one kind of file only."""
    for inner in (folder, folder / "data"):
        for ending in ENDINGS:
            names = (f"{split}{ending}", f"{split}-*{ending}", f"*-{split}{ending}")
            found = next((files for name in names if (files := sorted(inner.glob(name)))), None)
            if found:
                return found
    raise DataError(
        f"{folder}: holds no split {split!r}, expected a file such as {split}.jsonl, {split}.csv or "
        f"{split}-00000-of-00001.parquet. Pass the file itself, or name the file so."
    )
