"""Where diffusers puts the tensors of a diffusion model's GGUF file.

A file either has the names of diffusers, then a key is the name in the file; or those of Stability AI's Stable
Diffusion 3. There q, k and v of an attention are one tensor, one below the other, and diffusers cuts it in three.

Left out are the modulations of the last layers, whose two halves diffusers exchanges: their values lie in another order
than the file's.

Source: diffusers 0.42.1, loaders/single_file_utils.py (`convert_sd3_transformer_checkpoint_to_diffusers`).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from zoquant.backends.gguf.header import Header, TensorInfo

ARCHITECTURES = frozenset({"sd3"})
"""The values of `general.architecture` that are diffusion models with an index."""

_PREFIX = "model.diffusion_model."
_NUMBER = re.compile(r"joint_blocks\.(0|[1-9]\d{0,5})\.")
_TOP: Mapping[str, str] = {
    "x_embedder.proj": "pos_embed.proj",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "context_embedder": "context_embedder",
    "final_layer.linear": "proj_out",
}
_BLOCK: Mapping[str, Sequence[str]] = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "x_block.attn.proj": ("attn.to_out.0",),
    "x_block.attn.ln_q": ("attn.norm_q",),
    "x_block.attn.ln_k": ("attn.norm_k",),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "x_block.attn2.proj": ("attn2.to_out.0",),
    "x_block.attn2.ln_q": ("attn2.norm_q",),
    "x_block.attn2.ln_k": ("attn2.norm_k",),
    "x_block.adaLN_modulation.1": ("norm1.linear",),
    "x_block.mlp.fc1": ("ff.net.0.proj",),
    "x_block.mlp.fc2": ("ff.net.2",),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "context_block.attn.proj": ("attn.to_add_out",),
    "context_block.attn.ln_q": ("attn.norm_added_q",),
    "context_block.attn.ln_k": ("attn.norm_added_k",),
    "context_block.adaLN_modulation.1": ("norm1_context.linear",),
    "context_block.mlp.fc1": ("ff_context.net.0.proj",),
    "context_block.mlp.fc2": ("ff_context.net.2",),
}
_OTHER_ORDER = "final_layer.adaLN_modulation.1"
_TABLES = ("pos_embed", "pos_embed.pos_embed")
"""Positions, which are computed and belong to no parameter."""


def parts(header: Header) -> Iterator[tuple[str, TensorInfo]]:
    """Yield what a parameter of the model in diffusers is called, and the rows of the file that it holds.

    Raises:
        CheckpointError: a tensor has a name that such a model does not have, or q, k and v have unlike numbers of rows.
    """
    tensors = list(header.tensors.values())
    if not any("joint_blocks." in tensor.name for tensor in tensors):
        yield from ((tensor.name, tensor) for tensor in tensors if tensor.name not in _TABLES)
        return
    last = max(_number(tensor) for tensor in tensors)
    for tensor in tensors:
        name, _, field = tensor.name.removeprefix(_PREFIX).rpartition(".")
        modules = _modules(tensor, name, last)
        for module, piece in zip(modules, _cut(tensor, len(modules)), strict=True):
            yield f"{module}.{field}", piece


def _number(tensor: TensorInfo) -> int:
    """Return the number of the block that a tensor belongs to, -1 for none."""
    found = _NUMBER.match(tensor.name.removeprefix(_PREFIX))
    return int(found[1]) if found else -1


def _modules(tensor: TensorInfo, name: str, last: int) -> Sequence[str]:
    """Return the modules that share a tensor's rows; none for those that hold them in another order."""
    number = _number(tensor)
    part = name.removeprefix(f"joint_blocks.{number}.")
    if tensor.name.removeprefix(_PREFIX) in _TABLES or name == _OTHER_ORDER:
        return ()
    if number == last and part == "context_block.adaLN_modulation.1":
        return ()
    if number < 0 and name in _TOP:
        return (_TOP[name],)
    if number >= 0 and part in _BLOCK:
        return [f"transformer_blocks.{number}.{module}" for module in _BLOCK[part]]
    remedy = "zoquant cannot say where diffusers puts it, so the file is refused."
    raise tensor.error("a tensor of a Stable Diffusion 3 transformer", "an unknown name", remedy)


def _cut(tensor: TensorInfo, count: int) -> Iterator[TensorInfo]:
    """Yield a tensor in equal parts, the first rows first."""
    if count and (not tensor.shape or tensor.shape[0] % count):
        raise tensor.error(f"rows in {count} equal parts", f"shape {tensor.shape}")
    for index in range(count):
        nbytes = tensor.nbytes // count
        shape = (tensor.shape[0] // count, *tensor.shape[1:])
        yield replace(tensor, shape=shape, offset=tensor.offset + index * nbytes, nbytes=nbytes)
