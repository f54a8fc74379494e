"""The kit finds what is broken in checkpoints of several files, and in files that keep checksums."""

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import zoquant
from tests.folders import CONFIG, save_folder, tiny_llama
from tests.samples import dense_folder
from tests.toy import ToyFormat, toy_model, write_toy
from zoquant.backends.dense.format import DenseFormat
from zoquant.protocol import Span
from zoquant.testing import FORMAT_CHECKS, ConformanceError, FormatCase


def fails(name: str, path: Path, format: zoquant.Format, match: str) -> None:
    with pytest.raises(ConformanceError, match=match):
        FORMAT_CHECKS[name].run(FormatCase(path, format, torch.float32, steps=1))


class ReadsOnce(DenseFormat):
    """Keeps the first index that it read, whatever becomes of the files."""

    first: Mapping[str, Span] | None = None

    def index(self, path: Path) -> Mapping[str, Span]:
        self.first = self.first or super().index(path)
        return self.first


class ChecksOneShard(DenseFormat):
    """Looks at the first shard alone, and takes the others for what they were."""

    def __init__(self) -> None:
        self.first: dict[bytes, Mapping[str, Span]] = {}

    def index(self, path: Path) -> Mapping[str, Span]:
        head = min(path.glob("*.safetensors")).read_bytes()
        if head not in self.first:
            self.first[head] = super().index(path)
        return self.first[head]


class SwapsShards(DenseFormat):
    """Names for every value the place of another one of the same shape and dtype, in the other shard if there is."""

    def index(self, path: Path) -> Mapping[str, Span]:
        spans = dict(super().index(path))
        one, other = "model.layers.0.input_layernorm.weight", "model.layers.0.post_attention_layernorm.weight"
        return {**spans, one: spans[other], other: spans[one]}


class BeyondItsShard(DenseFormat):
    """Names a place that lies within the checkpoint's bytes, and beyond those of its own file."""

    def index(self, path: Path) -> Mapping[str, Span]:
        spans = dict(super().index(path))
        key, span = next(iter(spans.items()))
        return {**spans, key: replace(span, offset=(path / span.file).stat().st_size - 1)}


class Forgets(ToyFormat):
    """Keeps the values of its last layer in a second file, and does not say that this file belongs to it."""

    def index(self, path: Path) -> Mapping[str, Span]:
        spans = dict(super().index(path))
        last = next(reversed(spans))
        return {**spans, last: replace(spans[last], file="second.toy")}


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dense_folder(tmp_path_factory.mktemp("dense"))


def test_a_cut_second_shard_that_nobody_notices(dense: Path) -> None:
    fails("check_truncated_file_is_refused", dense, ChecksOneShard(), r"model-00002-of-00002\.safetensors cut to 0 of")


def test_a_cut_first_shard_that_nobody_notices(dense: Path) -> None:
    fails("check_truncated_file_is_refused", dense, ReadsOnce(), r"model-00001-of-00002\.safetensors cut to 0 of")


def test_values_of_another_tensor(dense: Path) -> None:
    model = tiny_llama()
    model.get_parameter("model.layers.0.input_layernorm.weight").fill_(2.0)
    path = save_folder(model, dense.parent / "other", shards=2)
    fails("check_index_matches_views", path, SwapsShards(), r"layernorm\.weight: the bytes at the index are not what")


def test_a_place_beyond_its_own_shard(dense: Path) -> None:
    fails("check_index_lies_in_the_file", dense, BeyondItsShard(), r"ends at byte \d+ of model-0000")


def test_a_file_that_the_format_does_not_name(tmp_path: Path) -> None:
    path = write_toy(tmp_path / "base.toy", toy_model())
    (tmp_path / "second.toy").write_bytes(path.read_bytes())
    fails("check_index_lies_in_the_file", path, Forgets(), r"of second\.toy, expected a place in one of the files")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Write a llama as torch.save does, with a checksum of every tensor."""
    path = tmp_path / "archive"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    torch.save(dict(tiny_llama().state_dict()), path / "pytorch_model.bin")
    return path


def test_an_archive_keeps_its_checksums(archive: Path) -> None:
    case = FormatCase(archive, DenseFormat(), torch.float32, steps=1)
    assert case.format.checksums(archive)  # type: ignore[attr-defined]
    FORMAT_CHECKS["check_export_changes_only_indexed_bytes"].run(case)


def test_checksums_that_no_longer_hold(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["zoquant.checkpoint.exporting"], "_renew", lambda *_: None)
    fails("check_export_changes_only_indexed_bytes", archive, DenseFormat(), "holds no longer in the export")
