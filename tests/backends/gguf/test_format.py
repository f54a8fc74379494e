"""The index names exactly the bytes that the native layers hold, and needs neither transformers nor gguf."""

import mmap
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.backends.gguf.files import TinyFile
from tests.backends.gguf.models import ARCHITECTURES, metadata_of, tiny
from zoquant import attach
from zoquant.backends.gguf.blocks import CODECS
from zoquant.backends.gguf.format import GGUFFormat
from zoquant.errors import CheckpointError
from zoquant.native import QuantLinear
from zoquant.protocol import ROLES, Span

EVERY = (*CODECS, "F32", "F16", "BF16")


def on_disk(folder: Path, span: Span) -> torch.Tensor:
    """Return the values that a span names, by plain arithmetic on the file's bytes."""
    dtype = {torch.float16: np.float16, torch.float32: np.float32, torch.bfloat16: np.uint16}[span.dtype]
    with (folder / span.file).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        view = np.ndarray(span.shape, dtype, data, span.offset, span.strides)
        if span.dtype == torch.bfloat16:
            return torch.from_numpy((view.astype(np.uint32) << 16).view(np.float32))
        return torch.from_numpy(view.copy())


def check_index(path: Path, model: nn.Module) -> None:
    """Every view that a model offers reads what stands at its place in the file, and no place has no view."""
    index, views = GGUFFormat().index(path), attach(model, roles=ROLES, verify=False)
    assert set(views.keys) == index.keys()
    for view in views:
        span = index[view.name]
        assert (view.role, tuple(view.shape), view.dtype) == (span.role, span.shape, span.dtype)
        assert torch.equal(on_disk(path.parent, span).float(), view.read()), view.name


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("types", [EVERY[:9], EVERY[9:18], EVERY[18:]], ids=lambda types: "-".join(types))
def test_index_names_the_bytes_of_every_live_value(tmp_path: Path, arch: str, types: tuple[str, ...]) -> None:
    model = tiny(arch)
    path = TinyFile(arch, model, metadata_of(model), types).write(tmp_path / "tiny.gguf")
    native, _ = GGUFFormat().open_native(path, compute_dtype=torch.float32, device=torch.device("cpu"))
    check_index(path, native)


def test_dense_keys(tmp_path: Path) -> None:
    def dense(arch: str, **changes: object) -> set[str]:
        model = tiny(arch, **changes)
        path = TinyFile(arch, model, metadata_of(model), "Q8_0").write(tmp_path / "tiny.gguf")
        keys = {key for key, span in GGUFFormat().index(path).items() if span.role == "dense"}
        return {key.removeprefix("model.layers.0.") for key in keys if "layers.1" not in key}

    norms = {"model.norm.weight", "input_layernorm.weight", "post_attention_layernorm.weight"}
    biases = {f"self_attn.{name}_proj.bias" for name in "qkv"}
    assert dense("llama") == norms
    assert dense("qwen2") == norms | biases
    assert dense("llama", attention_bias=True) == norms | biases | {"self_attn.o_proj.bias"}
    assert dense("gemma2") == norms | {f"{name}_feedforward_layernorm.weight" for name in ("pre", "post")}


def test_roles_and_types(tmp_path: Path) -> None:
    path = TinyFile("llama", tiny("llama"), types="Q4_1").write(tmp_path / "tiny.gguf")
    span = GGUFFormat().index(path)["model.layers.1.mlp.down_proj.m"]
    assert (span.role, span.shape, span.strides, span.dtype) == ("scale", (256, 16), (320, 20), torch.float16)
    assert (span.file, span.tensor) == ("tiny.gguf", "blk.1.ffn_down.weight")
    path = TinyFile("llama", tiny("llama"), types="Q4_K").write(tmp_path / "tiny.gguf")
    index = GGUFFormat().index(path)
    assert {index[f"lm_head.{name}"].role for name in ("d", "dmin")} == {"scale"}
    assert index["lm_head.dmin"].offset == index["lm_head.d"].offset + 2


def test_a_write_to_the_bytes_of_a_span_changes_that_value_alone(tmp_path: Path) -> None:
    path = TinyFile("qwen2", tiny("qwen2"), types="Q6_K").write(tmp_path / "tiny.gguf")
    index = GGUFFormat().index(path)
    before = {key: on_disk(tmp_path, span) for key, span in index.items()}
    span = index["model.layers.0.mlp.up_proj.d"]
    with path.open("r+b") as file:
        file.seek(span.offset + 3 * span.strides[0])
        file.write(np.float16(0.25).tobytes())
    before["model.layers.0.mlp.up_proj.d"][3, 0] = 0.25
    assert all(torch.equal(on_disk(tmp_path, index[key]), values) for key, values in before.items())
    model, _ = GGUFFormat().open_native(path, compute_dtype=torch.float32, device=torch.device("cpu"))
    layer = model.get_submodule("model.layers.0.mlp.up_proj")
    assert isinstance(layer, QuantLinear)
    assert layer.packed.value("d")[3, 0] == 0.25


def test_sniff(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content, expected in [(b"GGUF", True), (b"GGU", False), (b"", False), (b"PK\3\4GGUF", False)]:
        path.write_bytes(content)
        assert GGUFFormat().sniff(path) is expected
    assert not GGUFFormat().sniff(tmp_path)
    assert not GGUFFormat().sniff(tmp_path / "absent")


def test_summary(tmp_path: Path) -> None:
    model = tiny("gemma2")
    path = TinyFile("gemma2", model, metadata_of(model), ["MXFP4", "Q4_0"]).write(tmp_path / "tiny.gguf")
    summary = GGUFFormat().summarize(path)
    parameters = {id(parameter): parameter.numel() for parameter in model.parameters()}
    assert summary.parameters == sum(parameters.values())
    assert (summary.architecture, summary.layers, summary.bytes) == ("gemma2", 15, path.stat().st_size)
    assert summary.types == {"MXFP4": 8, "Q4_0": 7, "F32": 9}
    (note,) = summary.notes
    assert note.startswith("MXFP4: nothing to train, its scale is a power of two")
    assert summary.runtimes["native"].startswith("yes")


def test_summary_of_an_unknown_architecture(tmp_path: Path) -> None:
    path = TinyFile("mamba", tiny("llama")).write(tmp_path / "tiny.gguf")
    summary = GGUFFormat().summarize(path)
    assert summary.architecture == "mamba"
    assert summary.runtimes["native"].startswith("no: architecture 'mamba' is not one of cohere2, command-r, gemma")


def test_a_vector_of_blocks_is_refused(tmp_path: Path) -> None:
    import gguf

    def add(writer: gguf.GGUFWriter) -> None:
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor("output_norm.weight", np.zeros(8 * 34, dtype=np.uint8), raw_dtype=kind)

    path = TinyFile("llama", tiny("llama"), skip=["output_norm.weight"], edit=add).write(tmp_path / "bad.gguf")
    for action in (
        GGUFFormat().index,
        lambda path: GGUFFormat().open_native(path, compute_dtype=torch.float32, device=torch.device("cpu")),
    ):
        with pytest.raises(CheckpointError, match=r"'output_norm\.weight': expected a matrix"):
            action(path)


def test_index_imports_neither_transformers_nor_gguf(tmp_path: Path) -> None:
    path = TinyFile("llama", tiny("llama"), types="IQ2_XXS").write(tmp_path / "tiny.gguf")
    code = (
        "import sys; from pathlib import Path; from zoquant.backends.gguf.format import GGUFFormat;"
        f"format = GGUFFormat(); path = Path({str(path)!r}); assert format.index(path); format.summarize(path);"
        "print([name for name in ('transformers', 'gguf', 'numpy.testing') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
