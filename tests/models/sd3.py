"""A Stable Diffusion 3 pipeline small enough for a test: every class is the real one, the weights are random."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor, nn

WORDS = ("a", "red", "blue", "square", "circle")
WIDTH = 32
"""Width of a text encoder's output."""


def transformer() -> Any:
    """Return a transformer of two layers, the first one with two attentions."""
    from diffusers import SD3Transformer2DModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SD3Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=16,
            num_attention_heads=4, joint_attention_dim=4 * WIDTH, caption_projection_dim=64,
            pooled_projection_dim=2 * WIDTH, pos_embed_max_size=8, dual_attention_layers=(0,), qk_norm="rms_norm",
        )  # fmt: skip
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("linear.weight"):
                nn.init.normal_(parameter, std=0.02)
    return model.eval()


def write_pipeline(folder: Path) -> Path:
    """Write the whole pipeline as diffusers does."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        clip = CLIPTextConfig(
            vocab_size=16, hidden_size=WIDTH, intermediate_size=64, projection_dim=WIDTH, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=77, eos_token_id=2, bos_token_id=1, pad_token_id=0,
        )  # fmt: skip
        t5 = T5Config(
            vocab_size=16,
            d_model=4 * WIDTH,
            d_kv=16,
            d_ff=64,
            num_layers=1,
            num_heads=4,
            feed_forward_proj="gated-gelu",
        )
        vae = AutoencoderKL(
            sample_size=16, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
            shift_factor=0.05, scaling_factor=1.5, use_quant_conv=False, use_post_quant_conv=False,
        )  # fmt: skip
        pipeline = StableDiffusion3Pipeline(
            transformer=transformer(), scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae,
            text_encoder=CLIPTextModelWithProjection(clip), tokenizer=tokenizer("clip"),
            text_encoder_2=CLIPTextModelWithProjection(clip), tokenizer_2=tokenizer("clip"),
            text_encoder_3=T5EncoderModel(t5), tokenizer_3=tokenizer("t5"),
        )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder


def tokenizer(kind: str) -> Any:
    """Return a tokenizer of a few words, of the class that the pipeline wants."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {word: number for number, word in enumerate(("<pad>", "<s>", "</s>", "<unk>", *WORDS))}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )  # fmt: skip
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        model_max_length=77 if kind == "clip" else 32,
    )  # fmt: skip


def write_images(folder: Path) -> Path:
    """Write four images of 16 x 16 pixels, red or blue, with captions."""
    from PIL import Image

    folder.mkdir()
    rows = []
    for number, color in enumerate(("red", "blue") * 2):
        pixels = np.zeros((16, 16, 3), np.uint8)
        pixels[2 : 12 + number, 3:13, 0 if color == "red" else 2] = 200 + number
        Image.fromarray(pixels).save(folder / f"{number}.png")
        rows.append(json.dumps({"file_name": f"{number}.png", "text": f"a {color} square"}))
    (folder / "metadata.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return folder


def write_gguf(model: nn.Module, path: Path, kind: str = "Q4_0", *, stability: bool = False) -> Path:
    """Write a transformer as GGUF, its matrices in `kind`, by diffusers' names or by Stability AI's."""
    state = {name: tensor.detach().float() for name, tensor in model.state_dict().items()}
    writer = gguf.GGUFWriter(path, "sd3")
    number = gguf.GGMLQuantizationType[kind]
    for name, tensor in (as_stability(state, layers=2) if stability else state).items():
        array = np.ascontiguousarray(tensor.numpy())
        if array.ndim == 2 and array.shape[1] % 32 == 0:
            writer.add_tensor(name, gguf.quants.quantize(array, number), raw_dtype=number)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


_STABILITY = {
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "context_embedder": "context_embedder",
    "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
}
_BLOCK = {
    "attn.to_out.0": "x_block.attn.proj",
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn2.to_out.0": "x_block.attn2.proj",
    "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k",
    "norm1.linear": "x_block.adaLN_modulation.1",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "attn.to_add_out": "context_block.attn.proj",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}
_QKV = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}


def as_stability(state: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Return the tensors under the names, and in the order, of Stability AI's own checkpoint."""
    left, out = dict(state), {"pos_embed": state["pos_embed.pos_embed"]}
    del left["pos_embed.pos_embed"]
    for number in range(layers):
        for name, modules in _QKV.items():
            for what in ("weight", "bias"):
                keys = [f"transformer_blocks.{number}.{module}.{what}" for module in modules]
                if keys[0] in left:
                    out[f"joint_blocks.{number}.{name}.{what}"] = torch.cat([left.pop(key) for key in keys])
    for key, tensor in left.items():
        path, _, what = key.rpartition(".")
        _, _, rest = path.partition("transformer_blocks.")
        block, _, inner = rest.partition(".")
        name = f"joint_blocks.{block}.{_BLOCK[inner]}" if rest else _STABILITY[path]
        swapped = path in ("norm_out.linear", f"transformer_blocks.{layers - 1}.norm1_context.linear")
        out[f"{name}.{what}"] = torch.cat(list(reversed(tensor.chunk(2)))) if swapped else tensor
    return out
