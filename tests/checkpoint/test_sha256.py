"""The sha256 of a checkpoint."""

from pathlib import Path

import pytest

from tests.tiny import write_checkpoint
from zoquant.checkpoint.sha256 import checkpoint_sha256
from zoquant.errors import DataError
from zoquant.files.sha256 import file_sha256


def test_the_sha256_of_a_file_and_of_several(tmp_path: Path) -> None:
    """They are what `sha256sum` says, of the list of files where there are several."""
    one = tmp_path / "rows.jsonl"
    one.write_text("abc")
    assert checkpoint_sha256(one) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_sha256(one) == checkpoint_sha256(one)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_text("abc")
    whole = checkpoint_sha256(model)
    (model / "run").mkdir()
    (model / "README.md").write_text("changed")
    assert checkpoint_sha256(model) == whole
    (model / "config.json").write_text("{ }")
    assert checkpoint_sha256(model) != whole
    shards = write_checkpoint(tmp_path / "shards.gguf", tensors_a_shard=5)
    before = checkpoint_sha256(shards)
    last = sorted(tmp_path.glob("shards*.gguf"))[-1]
    last.write_bytes(last.read_bytes() + b"\0")
    assert checkpoint_sha256(shards) != before
    with pytest.raises(DataError, match=r"gone\.csv: cannot be read"):
        checkpoint_sha256(tmp_path / "gone.csv")
