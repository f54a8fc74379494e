"""Where the page of some runs goes."""

from collections.abc import Sequence
from pathlib import Path

from zoquant.files.atomic_files import refuse_place, write_text
from zoquant.report.page import page
from zoquant.report.run_reading import Recorded

_NAME = "report.html"


def write_report(runs: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Write the page.

    Args:
        runs: folders of runs, finished or under way.
        out: the file, which must not exist; None writes `report.html` into the folder of the one run, where an
            earlier report is replaced.

    Returns:
        The path of the page.

    Raises:
        CheckpointError: a folder holds no run, or a file in it is damaged.
        OutputExistsError: something stands at `out`.
        ValueError: there is no run, or there are several and no `out`.
        WriteError: the file could not be written.
    """
    if not runs:
        raise ValueError("write_report: got no run, expected at least one folder.")
    if out is None and len(runs) > 1:
        raise ValueError(f"report: {len(runs)} runs on one page need a name for it, which is of none of them: --out.")
    folders = [Path(run) for run in runs]
    if out is not None:
        refuse_place(Path(out))
    found = [Recorded.read(folder, name) for folder, name in zip(folders, _names(folders), strict=True)]
    target = folders[0] / _NAME if out is None else Path(out)
    write_text(target, page(found))
    return target


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the name of each folder, or its path where two have the same."""
    names = [folder.resolve().name for folder in folders]
    return [name if names.count(name) == 1 else str(folder) for name, folder in zip(names, folders, strict=True)]
