"""Where the files of a checkpoint folder may lie: in the folder, not behind a link that leads out of it."""

from pathlib import Path

from zoquant.errors import CheckpointError


def refuse_stray(folder: Path, file: Path) -> None:
    """Refuse what a stranger's folder may hold instead of a file: a link that leads elsewhere, a pipe, a device.

    Links of the Hugging Face cache stay: they lead from `snapshots/<revision>` to `blobs` beside it.

    Raises:
        CheckpointError: the file exists and is no plain file of the folder.
    """
    try:
        if not file.exists() and not file.is_symlink():
            return
        place, home = file.resolve(strict=True), folder.resolve()
        plain = place.is_file()
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"{file}: leads nowhere: {getattr(error, 'strerror', None) or error}. Get the whole checkpoint."
        ) from error
    if not plain:
        raise CheckpointError(f"{file}: expected a file, got a folder, a pipe or a device. Get the checkpoint again.")
    if not place.is_relative_to(home) and place.parent != _blobs(home):
        raise CheckpointError(
            f"{file}: expected a file of this folder, got a link to {place}. A checkpoint must not read or copy what "
            "lies elsewhere; if the link is yours, put the file itself there."
        )


def _blobs(home: Path) -> Path | None:
    """Return where the Hub's cache keeps the files of a snapshot, or of a folder within one."""
    for folder in (home, *home.parents):
        if folder.parent.name == "snapshots":
            return folder.parent.parent / "blobs"
    return None
