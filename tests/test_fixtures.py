"""Checkpoints that the libraries themselves wrote, through the whole way on native layers.

They are no part of this repository: `ZOQUANT_FIXTURES` names their folder, or they lie in ../shared/fixtures.
"""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

import zoquant
from zoquant.checkpoint.stored_files import checksums_of, files_of
from zoquant.protocol import ROLES
from zoquant.registry import format_of
from zoquant.testing.format_case import span_bytes

FOLDER = Path(os.environ.get("ZOQUANT_FIXTURES", Path(__file__).parents[2] / "shared" / "fixtures"))
PATHS = sorted([*FOLDER.glob("*_*"), *FOLDER.glob("gguf/*.gguf")]) if FOLDER.is_dir() else []
IDS = torch.randint(0, 512, (2, 16), generator=torch.Generator().manual_seed(0))
BASES = {"peft_lora", "peft_prefix"}
"""Adapters: their config names a base that is not beside them; tests/backends/peft opens them on one."""


def loss_of(model: Any) -> float:
    with torch.no_grad():
        return float(model(input_ids=IDS, labels=IDS).loss)


@pytest.mark.skipif(not PATHS, reason="the fixtures are not here")
@pytest.mark.parametrize("path", [path for path in PATHS if path.name not in BASES], ids=lambda path: path.name)
def test_the_whole_way(path: Path, tmp_path: Path) -> None:
    found = format_of(path)
    model, _ = zoquant.load(path, runtime="native", compute_dtype=torch.float32, device="cpu")
    views = zoquant.attach(model, roles=("scale",) if found.name != "dense" else ROLES)
    delta, out = tmp_path / "delta.safetensors", tmp_path / f"out{path.suffix}"
    zoquant.save_delta(delta, views)
    same = zoquant.export(path, delta=delta, out=tmp_path / f"same{path.suffix}")
    before = [file.read_bytes() for file in files_of(path, found).values()]
    assert [file.read_bytes() for file in files_of(same, found).values()] == before
    optimizer = zoquant.ZOSGD(views, lr=5e-3, eps=1e-2)
    start = loss_of(model)
    for _ in range(20):
        optimizer.step(lambda: loss_of(model))
    assert loss_of(model) < start
    zoquant.save_delta(delta, views)
    tuned = zoquant.export(path, delta=delta, out=out)
    again, _ = zoquant.load(tuned, runtime="native", compute_dtype=torch.float32, device="cpu")
    assert loss_of(again) == loss_of(model)
    assert not _stray(path, tuned, views.keys)


def _stray(path: Path, tuned: Path, keys: Any) -> list[str]:
    """Return the files in which more has changed than values that moved, and checksums."""
    found = format_of(path)
    index, old, new = found.index(path), files_of(path, found), files_of(tuned, found)
    strays = []
    for name, place in zip(old, new.values(), strict=True):
        a, b = (torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8) for file in (old[name], place))
        allowed = torch.zeros(len(a), dtype=torch.bool)
        for key in keys:
            if index[key].file == name:
                allowed |= span_bytes(len(a), index[key])
        for checksum in checksums_of(path, found):
            if checksum.file == name:
                for start in checksum.places:
                    allowed[start : start + 4] = True
        if bool(((a != b) & ~allowed).any()):
            strays.append(name)
    return strays
