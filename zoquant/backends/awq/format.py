"""Checkpoints that AutoAWQ, llm-awq and GPTQModel write: tensors in `layout`.

Source: AutoAWQ 0.2.9, awq/models/base.py; transformers 5.23, utils/quantization_config.py (`AwqConfig`).
"""

from collections.abc import Mapping

from zoquant.backends.awq.layout import BITS, FAST, GEMM, GEMV, awq_layout
from zoquant.backends.gptq.config import read_schemes
from zoquant.checkpoint.folder import Folder, FolderFormat, StoredMatrix, layouts_that_fit

_KINDS = {
    "gemm": GEMM, "exllama": GEMM, "exllamav2": GEMM, "ipex": GEMM,
    "gemv": GEMV, "gemv_fast": FAST, "llm-awq": FAST,
}  # fmt: skip
"""The layout on disk of each `version`; kernels that arrange the words of `gemm` when they load them count as that."""
_ZEROS = ("qzeros", "scaled_zeros")


class AWQFormat(FolderFormat):
    """4 bits in the layouts gemm, gemv and gemv_fast."""

    name = "awq"
    methods = frozenset({"awq"})
    library = "gptqmodel"

    def layers(self, folder: Folder) -> Mapping[str, StoredMatrix]:
        said = folder.quantization
        version = said.get("version") or said.get("checkpoint_format") or said.get("format") or GEMM
        kind = _KINDS.get(str(version).lower().replace("-fast", "_fast"))
        if kind is None:
            known = ", ".join(_KINDS)
            raise folder.error("version", f"{known}; a kernel's own order has to be converted back", repr(version)[:40])
        return awq_layers(folder, kind)


def awq_layers(folder: Folder, kind: str = GEMM) -> dict[str, StoredMatrix]:
    """Return every matrix that has a `qweight`, by its path, by the first scheme of the config that it fits.

    Raises:
        CheckpointError: there is none, a tensor is missing, or its shape is none that the config allows.
    """
    schemes = read_schemes(folder, (BITS,))
    layers: dict[str, StoredMatrix] = {}
    for path in folder.paths("qweight"):
        zeros = next(iter(folder.held(path, _ZEROS)), _ZEROS[0])
        layouts = [
            awq_layout(kind, max(scheme.group_size, 0), zeros=zeros, type=f"{BITS}-bit g{scheme.group_size} {kind}")
            for scheme in schemes
        ]
        layers[path] = layouts_that_fit(folder, path, layouts)[0].matrix(folder, path)
    if not layers:
        raise folder.error("qweight", "a tensor of this name for each quantized layer", "none")
    return layers
