"""VPTQ: every kind of layer against float64 and, where it is installed, against vptq; files that lie."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import zoquant
from tests.backends.vptq.samples import settings_of, vptq_folder, vptq_linear, vptq_tensors
from tests.checkpoint.folder.llama import edit_config, edit_tensors
from zoquant.backends.vptq.format import VPTQFormat
from zoquant.backends.vptq.settings import parts_of
from zoquant.backends.vptq.weights import ROLES, VPTQWeight
from zoquant.errors import CheckpointError, UnsupportedLayoutError
from zoquant.testing import check_backend
from zoquant.testing.tensors import same_bits

ROWS, COLUMNS = 22, 32
KINDS: list[dict[str, Any]] = [
    {},
    {"residual": 0, "norm": False, "perm": False},
    {"length": 8, "count": 256, "residual": 256},
    {"length": 6, "count": 4096, "residual": 0},
    {"groups": 4, "length": 8, "residual": 16},
    {"outliers": 4, "length": 6},
    {"outliers": 8, "outlier_length": 4, "groups": 2, "count": 1 << 16, "residual": 1 << 16},
    {"outliers": 2, "perm": False, "norm": False, "residual": 0},
]


def bits_of(words: NDArray[Any], bits: int, count: int) -> NDArray[np.int64]:
    """Unpack fields, bit by bit."""
    stream = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), bitorder="little", axis=-1)
    fields = stream[..., : bits * count].reshape(*stream.shape[:-1], count, bits).astype(np.int64)
    joined: NDArray[np.int64] = (fields << np.arange(bits)).sum(-1)
    return joined


def reference(settings: dict[str, Any], tensors: dict[str, Tensor]) -> NDArray[np.float64]:
    """Return the matrix in float64, column by column, with numpy alone."""
    values = {name: tensor.double().numpy() for name, tensor in tensors.items() if tensor.is_floating_point()}
    rows, columns = settings["out_features"], settings["in_features"]
    (outlier_length, length), (_, count) = settings["vector_lens"], settings["num_centroids"]
    residual, first = max(settings["num_res_centroids"][1], 1), settings["outlier_size"]
    low, high = int(np.log2(count)), int(np.log2(residual))
    fields = bits_of(tensors["indices"].numpy(), low + high, settings["group_size"])
    weight = np.zeros((rows, columns))
    for j in range(first):
        book = values["outlier_centroids.weight"].reshape(-1, outlier_length)
        codes = tensors["outlier_indices"][0, :, j].numpy()
        weight[:, j] = book[codes].reshape(-1)[:rows]
    for j in range(first, columns):
        group, place = divmod(j - first, settings["group_size"])
        codes = fields[group, :, place]
        column = values["centroids.weight"][group].reshape(-1, length)[codes % count]
        if residual > 1:
            column = column + values["res_centroids.weight"][group].reshape(-1, length)[codes >> low]
        weight[:, j] = column.reshape(-1)[:rows]
    if settings["enable_perm"]:
        placed = np.empty_like(weight)
        placed[:, tensors["perm"].numpy().astype(np.int64)] = weight
        weight = placed
    return weight * values["weight_scale"] + values["weight_bias"] if settings["enable_norm"] else weight


def fail(name: str, expected: str, got: str) -> Exception:
    return AssertionError(f"{name}: {expected}, {got}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(f"{k}{v}" for k, v in kind.items()) or "plain")
def test_every_kind(kind: dict[str, Any], dtype: torch.dtype) -> None:
    settings = settings_of(ROWS, COLUMNS, **kind)
    tensors = vptq_tensors(settings, dtype=dtype)
    packed = VPTQWeight(ROWS, COLUMNS, parts_of(settings, fail), tensors)
    assert {field.name: field.role for field in packed.fields} == {n: ROLES[n] for n in tensors if n in ROLES}
    got = packed.dequantize()
    torch.testing.assert_close(got.double(), torch.from_numpy(reference(settings, tensors)), rtol=1e-5, atol=1e-6)
    rows = torch.tensor([5, 0, ROWS - 1, 5])
    assert same_bits(packed.decode_rows(rows), got[rows])
    assert same_bits(packed.decode_rows(slice(3, 11)), got[3:11])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(f"{k}{v}" for k, v in kind.items()) or "plain")
def test_vptq_itself_computes_the_same(kind: dict[str, Any]) -> None:
    pytest.importorskip("vptq", reason="vptq is not installed")
    layer: Any = vptq_linear(**kind)
    views = zoquant.attach(nn.ModuleDict({"a": layer}), roles=("scale", "zero", "codebook"))
    settings = settings_of(ROWS, COLUMNS, **kind)
    assert {key.removeprefix("a.") for key in views.keys} == {name for name in vptq_tensors(settings) if name in ROLES}
    check_backend(lambda: vptq_linear(**kind), steps=5)


def test_unpacked_indices_are_refused() -> None:
    pytest.importorskip("vptq", reason="vptq is not installed")
    layer: Any = vptq_linear()
    layer.is_indice_packed = False
    with pytest.raises(UnsupportedLayoutError, match="is_indice_packed is False, expected True"):
        zoquant.attach(nn.ModuleDict({"a": layer}))


PATH = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"num_centroids": [-1, 15]}, "num_centroids': expected a power of two"),
        ({"num_centroids": [-1, 32]}, "up_proj.indices': expected|up_proj.centroids.weight': expected"),
        ({"num_centroids": 16}, "num_centroids': expected two numbers"),
        ({"num_res_centroids": [-1, 64]}, "num_res_centroids': expected at most 16"),
        ({"vector_lens": [-1, 0]}, "vector_lens': expected a number from 1"),
        ({"group_size": None}, "group_size': expected a number from 1 to 16777216, got None"),
        ({"group_num": 2}, "in_features': expected"),
        ({"out_features": 0}, "out_features': expected a number of rows, got 0"),
        ({"is_indice_packed": False}, "is_indice_packed': expected True"),
        ({"indices_as_float": True}, "indices_as_float': expected False"),
        ({"vector_quant_dim": "in"}, "vector_quant_dim': expected 'out'"),
        ({"outlier_size": 4, "vector_lens": [2, 4], "num_centroids": [12, 16]}, "in_features': expected"),
    ],
)
def test_settings_that_lie(tmp_path: Path, change: dict[str, Any], text: str) -> None:
    def edit(config: dict[str, Any]) -> None:
        config["quantization_config"]["config_for_layers"][PATH].update(change)

    with pytest.raises(CheckpointError, match=text):
        VPTQFormat().index(edit_config(vptq_folder(tmp_path), edit))


@pytest.mark.parametrize("name", ["indices", "res_centroids.weight", "perm", "weight_bias"])
def test_missing_tensors(tmp_path: Path, name: str) -> None:
    path = edit_tensors(vptq_folder(tmp_path), lambda tensors: tensors.__delitem__(f"{PATH}.{name}"))
    with pytest.raises(CheckpointError, match=f"{PATH}.{name}': expected a tensor of this name, got none"):
        VPTQFormat().index(path)


def test_a_layer_without_settings(tmp_path: Path) -> None:
    def edit(config: dict[str, Any]) -> None:
        del config["quantization_config"]["config_for_layers"][PATH]

    path = edit_config(vptq_folder(tmp_path), edit)
    with pytest.raises(CheckpointError, match=f"expected the settings of {PATH}"):
        VPTQFormat().index(path)
