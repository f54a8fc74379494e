"""Folders whose tensors lie in files of torch.save, through the format and the export."""

import json
import zipfile
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import OPTConfig, OPTForCausalLM

import zoquant
from tests.backends.aqlm.samples import aqlm_folder
from tests.backends.hqq.samples import hqq_archive
from tests.checkpoint.folder.llama import logits
from zoquant.checkpoint.folder import open_folder
from zoquant.checkpoint.replay_views import checkpoint_views
from zoquant.errors import CheckpointError
from zoquant.testing import FORMAT_CHECKS, FormatCase
from zoquant.testing.results import ConformanceError


def as_bin(path: Path, *, shards: int = 1) -> Path:
    """Turn the safetensors file of a folder into what torch.save writes, in one file or several with an index."""
    tensors = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    names = ["pytorch_model.bin"] if shards == 1 else [f"pytorch_model-{n:05}.bin" for n in range(shards)]
    places = {name: names[n % shards] for n, name in enumerate(tensors)}
    for file in names:
        torch.save({name: tensors[name] for name in tensors if places[name] == file}, path / file)
    if shards > 1:
        (path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    return path


def opened(path: Path) -> torch.nn.Module:
    model, _ = zoquant.load(path, runtime="native", compute_dtype=torch.float32, device="cpu")
    return model


@pytest.mark.parametrize("shards", [1, 3])
def test_a_format_reads_both_kinds_of_file(tmp_path: Path, shards: int) -> None:
    path = aqlm_folder(tmp_path)
    expected = logits(opened(path))
    assert torch.equal(logits(opened(as_bin(path, shards=shards))), expected)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("check", FORMAT_CHECKS.values(), ids=FORMAT_CHECKS)
def test_every_law(tmp_path: Path, check: zoquant.testing.Check[FormatCase], shards: int) -> None:
    path = as_bin(aqlm_folder(tmp_path), shards=shards)
    check.run(FormatCase(path, zoquant.registry.format_of(path), torch.float32, steps=3))


def test_ties_are_one_tensor(tmp_path: Path) -> None:
    """torch.save keeps the name of a tied head beside that of the embedding."""
    path = as_bin(aqlm_folder(tmp_path, tie_word_embeddings=True))
    tensors = torch.load(path / "pytorch_model.bin", weights_only=True)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    torch.save(tensors, path / "pytorch_model.bin")
    assert "lm_head.weight" not in open_folder(path).tensors
    keys = zoquant.attach(opened(path), roles=("dense",)).keys
    assert [key for key in keys if key.startswith(("lm_head", "model.embed"))] == ["model.embed_tokens.weight"]


def opt_folder(path: Path, **said: bool) -> Path:
    """Write an OPT model as torch.save does, with a config that leaves out what is the default of its class."""
    sizes = {
        "vocab_size": 48, "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
        "max_position_embeddings": 32, "word_embed_proj_dim": 32,
    }  # fmt: skip
    model = OPTForCausalLM(OPTConfig(**sizes)).half()
    config = {"model_type": "opt", "architectures": ["OPTForCausalLM"], **sizes, **said}
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    torch.save(model.state_dict(), path / "pytorch_model.bin")
    return path


@pytest.mark.parametrize("said", [{}, {"tie_word_embeddings": False}], ids=["silent", "untied"])
def test_ties_of_which_the_config_says_nothing(tmp_path: Path, said: dict[str, bool]) -> None:
    """One matrix under two names moves once, live and in the export."""
    path, delta = opt_folder(tmp_path / "opt", **said), tmp_path / "delta.safetensors"
    model = opened(path)
    views = zoquant.attach(model, roles=("dense",))
    assert [key for key in views.keys if key.startswith("lm_head") or "embed_tokens" in key] == [
        "model.decoder.embed_tokens.weight"
    ]
    views.add(1, 0.25, "rademacher")
    views.write()
    zoquant.save_delta(delta, views)
    out = zoquant.export(path, delta=delta, out=tmp_path / "tuned")
    ids = torch.arange(8)[None]
    assert torch.equal(opened(out)(input_ids=ids).logits, model(input_ids=ids).logits)


def test_two_tensors_on_the_same_bytes_are_not_exported(tmp_path: Path) -> None:
    """Rows that overlap are no tie: a delta of one fits the file, a delta of both does not."""
    path, delta = aqlm_folder(tmp_path), tmp_path / "delta.safetensors"
    (path / "model.safetensors").unlink()
    (path / "config.json").write_text("{}")
    rows = torch.ones(6, 4)
    torch.save({"a": rows[:4], "b": rows[2:], "c": rows[5:]}, path / "pytorch_model.bin")
    for keys in (["a", "c"], ["a", "b"]):
        views = checkpoint_views(path, keys, coupled=True)
        views.add(1, 0.25, "rademacher")
        zoquant.save_delta(delta, views)
        if "b" not in keys:
            zoquant.export(path, delta=delta, out=tmp_path / "tuned")
            continue
        with pytest.raises(CheckpointError, match=r"a and b: expected places of their own in .*pytorch_model\.bin"):
            zoquant.export(path, delta=delta, out=tmp_path / "refused")


def moved(path: Path, delta: Path) -> None:
    views = zoquant.attach(opened(path))
    views.add(1, 0.25, "rademacher")
    views.write()
    zoquant.save_delta(delta, views)


def test_checksums_are_renewed(tmp_path: Path) -> None:
    path, delta = hqq_archive(tmp_path), tmp_path / "delta.safetensors"
    moved(path, delta)
    out = zoquant.export(path, delta=delta, out=tmp_path / "tuned")
    assert (out / "qmodel.pt").read_bytes() != (path / "qmodel.pt").read_bytes()
    assert zipfile.ZipFile(out / "qmodel.pt").testzip() is None
    torch.load(out / "qmodel.pt", weights_only=True)


def test_checksums_that_never_held_stay(tmp_path: Path) -> None:
    """torch can leave them out; then they are zeros."""
    path, delta = hqq_archive(tmp_path), tmp_path / "delta.safetensors"
    content = torch.load(path / "qmodel.pt", weights_only=True)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(content, path / "qmodel.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    moved(path, delta)
    out = zoquant.export(path, delta=delta, out=tmp_path / "tuned")
    assert {member.CRC for member in zipfile.ZipFile(out / "qmodel.pt").infolist()} == {0}


def test_the_kit_sees_a_checksum_that_was_not_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("zoquant.checkpoint.exporting"), "checksums_of", lambda path, found: ())
    path = hqq_archive(tmp_path)
    case = FormatCase(path, zoquant.registry.format_of(path), torch.float32, steps=3)
    with pytest.raises(ConformanceError, match="holds no longer in the export"):
        FORMAT_CHECKS["check_export_changes_only_indexed_bytes"].run(case)


def test_two_files_that_could_be_meant(tmp_path: Path) -> None:
    path = as_bin(aqlm_folder(tmp_path))
    (path / "qmodel.pt").write_bytes((path / "pytorch_model.bin").read_bytes())
    with pytest.raises(CheckpointError, match=r"got pytorch_model\.bin, qmodel\.pt"):
        open_folder(path)
