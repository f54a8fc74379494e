"""Folders of peft: adapter_config.json and the tensors of one adapter, so that a delta goes into the file without peft.

Source: peft 0.21.2, peft/utils/save_and_load.py (`get_peft_model_state_dict`), peft/utils/constants.py.
"""

from collections import Counter
from collections.abc import Mapping
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoquant.backends.peft.config import peft_arguments
from zoquant.backends.peft.live import lora_on_native, prompts_on_native
from zoquant.checkpoint.folder import Folder
from zoquant.checkpoint.folder.libraries import refusing
from zoquant.checkpoint.folder.matrix import DENSE
from zoquant.checkpoint.folder.reading import ADAPTER_CONFIG as CONFIG
from zoquant.checkpoint.folder.reading import ADAPTERS as TENSORS
from zoquant.checkpoint.folder.reading import CONFIG as MODEL_CONFIG
from zoquant.checkpoint.folder.reading import holds_only_adapter, read_json
from zoquant.errors import CheckpointError, UnsupportedLayoutError
from zoquant.files.archive import read_archive
from zoquant.files.hub import local_path
from zoquant.files.safetensors import read_safetensors
from zoquant.protocol import Format, Role, Span, Summary, Vendor
from zoquant.registry import format_of

PROMPT = "prompt_embeddings"


class PeftFormat:
    """An adapter as peft saves it: every tensor that it adds is a view of role `adapter`.

    A folder that holds a whole model, too, is that model: for the adapter, copy its files to a folder of their own.
    """

    name = "peft"
    library = "peft"

    def runtimes(self) -> dict[str, str]:
        """Return whether an adapter can be computed here, on either layers of its base."""
        return {"native": _runtime("a native base"), "vendor": _runtime("the base on its own library")}

    def sniff(self, path: Path) -> bool:
        """Tell whether `path` is a folder whose adapter_config.json names a kind of adapter, and holds no model."""
        try:
            if not (path / CONFIG).is_file() or "peft_type" not in read_json(path / CONFIG):
                return False
            return not (path / MODEL_CONFIG).is_file() or holds_only_adapter(path)
        except CheckpointError:
            return False

    def index(self, path: Path) -> Mapping[str, Span]:
        """Return the place of every tensor, by the key that a live adapter of the name `default` has."""
        folder = _open(path)
        return {_key(name): folder.span(name, _role(name)) for name in folder.tensors}

    def summarize(self, path: Path) -> Summary:
        folder = _open(path)
        base = folder.config.get("base_model_name_or_path")
        return Summary(
            architecture=str(folder.config["peft_type"]).lower(),
            layers=0,
            parameters=sum(prod(tensor.shape) for tensor in folder.tensors.values()),
            bytes=folder.bytes,
            types=Counter(str(tensor.dtype).removeprefix("torch.") for tensor in folder.tensors.values()),
            notes=[f"an adapter of {base}" if base else "an adapter whose config names no base"],
            runtimes=self.runtimes(),
        )

    def open_native(self, path: Path, *, compute_dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, Any]:
        """Return the base on native layers with the adapter on it, as peft adds it, and the tokenizer of the base.

        A base of plain weights is on the layers of torch: peft knows those.

        Args:
            path: the adapter's folder; its config names the base.
            compute_dtype: dtype of the matrix products of the base.
            device: where the model goes.
        """
        folder = _open(path)
        (base, found), config = _base(folder), _config(folder)
        if found.name == "dense":
            return _with_adapter(path, config, _on_its_library(base, found, compute_dtype, device))
        return _with_adapter(path, config, found.open_native(base, compute_dtype=compute_dtype, device=device))

    def open_vendor(self, path: Path, *, compute_dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, Any]:
        """Return the base on the layers of its own library, with the adapter on it, and its tokenizer."""
        folder = _open(path)
        (base, found), config = _base(folder), _config(folder)
        return _with_adapter(path, config, _on_its_library(base, found, compute_dtype, device))


def _open(path: Path) -> Folder:
    """Read the config and the header."""
    config, files = read_json(path / CONFIG), [path / name for name in TENSORS if (path / name).exists()]
    if not files:
        raise CheckpointError(f"{path}: expected {' or '.join(TENSORS)}, got neither. Get the whole adapter.")
    tensors = (read_safetensors if files[0].suffix == ".safetensors" else read_archive)(files[0])[0]
    folder = Folder(path, config, {}, tensors, {}, {})
    if not isinstance(config.get("peft_type"), str):
        raise folder.error("peft_type", "a kind of adapter in adapter_config.json", repr(config.get("peft_type"))[:80])
    for name, tensor in tensors.items():
        if tensor.dtype not in DENSE:
            raise folder.error(name, "float32, float16 or bfloat16", str(tensor.dtype).removeprefix("torch."))
    return folder


def _key(name: str) -> str:
    """Return the key of a tensor: its own name, but that of the virtual tokens, which the file does not place."""
    return f"prompt_encoder.default.{PROMPT}" if name == PROMPT else name


def _role(name: str) -> Role:
    """Return the role of a tensor: peft may save the base of a lookup table, or the biases of its layers, as well."""
    return "dense" if ".base_layer." in name else "adapter"


def _base(folder: Folder) -> tuple[Path, Format]:
    """Return the place of the base that the config names, here or from the Hub, and its format."""
    path, base = folder.path, folder.config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise CheckpointError(
            f"{path}: 'base_model_name_or_path': expected the base of the adapter, got {base!r}. Name it there."
        )
    if find_spec("peft") is None:
        raise UnsupportedLayoutError(f"{path}: peft computes adapters and is missing: pip install 'zoquant[peft]'.")
    place = local_path(base)
    found = format_of(place)
    if found.name == PeftFormat.name:
        raise CheckpointError(
            f"{path}: 'base_model_name_or_path': expected a model, got {base[:80]!r}, which is an adapter itself. "
            "Name the model there."
        )
    return place, found


def _on_its_library(base: Path, found: Format, dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, Any]:
    if not isinstance(found, Vendor):
        raise UnsupportedLayoutError(
            f"{base}: the format {found.name} of the base has no vendor runtime here. Use runtime='native'."
        )
    return found.open_vendor(base, compute_dtype=dtype, device=device)


def _config(folder: Folder) -> Any:
    """Return the config of peft, made of what `peft_arguments` lets pass."""
    from peft import LoraConfig, PeftConfig

    arguments = peft_arguments(folder)
    with refusing(folder.path, "peft does not take adapter_config.json", "Update peft, or get the adapter again."):
        config: Any = PeftConfig.from_peft_type(**arguments, inference_mode=True)
    return lora_on_native(config) if isinstance(config, LoraConfig) else config


def _with_adapter(path: Path, config: Any, loaded: tuple[nn.Module, Any]) -> tuple[nn.Module, Any]:
    from peft import PeftModel

    model, tokenizer = loaded
    with refusing(path, "peft cannot put the adapter on its base", "Get the adapter again, or the base it names."):
        tuned: nn.Module = PeftModel.from_pretrained(model, str(path), config=config)
    if config.is_prompt_learning:
        prompts_on_native(tuned)
    return tuned.eval().requires_grad_(False), tokenizer


def _runtime(base: str) -> str:
    return f"yes: peft, over {base}" if find_spec("peft") else "no: peft is not installed"
