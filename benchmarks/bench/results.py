"""Where results go: a JSON file with the name of the device."""

import json
import re
from pathlib import Path
from typing import Any

from zoquant.files.atomic_files import write_text


def save(found: dict[str, Any], folder: Path) -> Path:
    """Write what `bench` returned to `<folder>/<device>.json` and return the file.

    Raises:
        WriteError: the file could not be written.
    """
    path = folder / f"{file_name(str(found['machine']['processor']))}.json"
    write_text(path, json.dumps(found, indent=1) + "\n")
    return path


def file_name(name: str) -> str:
    """Return the name of a device as that of a file: small letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower().replace("(r)", "")).strip("-")
