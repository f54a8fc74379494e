"""The readers of data files, of configs, and of what other processes leave: a lock, a log of steps."""

import fcntl
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from torch.distributed import HashStore  # type: ignore[attr-defined]

from examples.slow_links import LoggedStep, StepLog
from zoquant.errors import ConfigError, DataError, FolderInUseError
from zoquant.files.lock import Lock
from zoquant.record.step import Step
from zoquant.tasks.rows import read_rows
from zoquant.training import Config
from zoquant.training.config.file import ConfigFile

_ROWS = {
    "jsonl": '{"text": "a \\u00e4 \\ud83d\\ude00", "label": 1}\n{"text": "b", "label": [2]}\n',
    "json": '[{"text": "a \\u00e4 \\ud83d\\ude00", "label": 1}, {"text": "b", "label": [2]}]\n',
    "csv": 'text,label\n"a, b",1\n"c ""d""\ne",0\n',
    "tsv": 'text\tlabel\na "b\t1\nc\t0\n',
    "txt": "a\nb\n\nc\n",
}
_VALUES = {
    "model": "m.gguf", "data": "d.jsonl", "template": "{text} was {label}", "labels": {"0": "bad", "1": "good"},
    "steps": 3, "lr": 1e-3, "clip": "inf", "roles": ["scale"],
}  # fmt: skip
_YAML = """model: m.gguf
data: d.jsonl
template: "{text} was {label}"
labels: {"0": bad, "1": good}
steps: 3
lr: 1e-3
roles:
- scale
"""
_HEADER = {"base": "00ff"}


def _rows(kind: str, folder: Path) -> Path:
    (folder / f"rows.{kind}").write_text(_ROWS[kind], encoding="utf-8")
    return folder / f"rows.{kind}"


def _parquet(folder: Path) -> Path:
    from pyarrow import Table, parquet

    parquet.write_table(Table.from_pydict({"text": ["a", "b"], "label": [1, 0]}), folder / "rows.parquet")
    return folder / "rows.parquet"


def _toml(folder: Path) -> Path:
    (folder / "config.toml").write_text(Config.of(_VALUES, {"model": "00ff"}).to_toml(), encoding="utf-8")
    return folder / "config.toml"


def _yaml(folder: Path) -> Path:
    (folder / "config.yaml").write_text(_YAML, encoding="utf-8")
    return folder / "config.yaml"


def _read_config(path: Path, _: bool) -> None:
    """Read a config, look for a key, and write it again; a setting out of its range is a plain ValueError."""
    try:
        ConfigFile.read(path).line_of("nowhere")
        Config.read(path).to_toml()
    except (ConfigError, DataError):
        raise
    except ValueError as error:
        raise DataError(str(error)) from error


def _lock(folder: Path) -> Path:
    (folder / "run.lock").write_text('{"pid": 1, "host": "a", "since": "2026"}')
    return folder / "run.lock"


def _read_lock(path: Path, _: bool) -> None:
    """Ask for a lock that somebody holds who says what stands in the file."""
    file = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        Lock(path).acquire()
    except FolderInUseError as error:
        if not str(error).isprintable():
            raise
    finally:
        os.close(file)


def _log(folder: Path) -> Path:
    store = HashStore()
    StepLog(store, _HEADER)
    (folder / "header.json").write_bytes(store.get("header"))
    (folder / "step.txt").write_text(LoggedStep(3, 0, Step((7, 9), (0.5, -1e-3), (1e-3,))).encode())
    return folder


def _read_log(path: Path, _: bool) -> None:
    store = HashStore()
    for key, name in (("header", "header.json"), ("step/0", "step.txt")):
        if (path / name).exists():
            store.set(key, (path / name).read_bytes())  # type: ignore[arg-type]
    StepLog(store, _HEADER).read(0)


ROW_TARGETS: Mapping[str, tuple[Callable[[Path], Path], Callable[[Path, bool], object]]] = {
    **{f"reader-{kind}": (partial(_rows, kind), lambda path, _: read_rows(path)) for kind in _ROWS},
    "reader-parquet": (_parquet, lambda path, _: read_rows(path)),
    "reader-config-toml": (_toml, _read_config),
    "reader-config-yaml": (_yaml, _read_config),
    "reader-lock": (_lock, _read_lock),
    "reader-step-log": (_log, _read_log),
}
"""Name -> what writes a sound file into an empty folder, and what reads it."""
