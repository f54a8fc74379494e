"""Quantize a dense model to GPTQ or AWQ with GPTQModel, on a CPU: the checkpoints of real size in docs/formats.md.

    python benchmarks/gptqmodel_quantize.py <file.gguf or dense folder> <out> --method gptq

GPTQModel needs an environment of its own: gptqmodel 7.7.0 beside torch 2.13.0 and transformers 5.23.0. SmolLM2 has 576
columns, which groups of 64 divide and groups of 128 do not.
"""

import argparse
import json
import os
import time
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
"""GPTQModel's pool of threads cannot be built on two cores without it."""


def dense_folder(source: Path, out: Path) -> Path:
    """Return a folder of dense float32 weights: `source` itself, or what a GGUF file holds, dequantized into `out`."""
    if source.is_dir():
        return source
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype="float32")
    model.config.quantization_config = None
    del model.config.quantization_config
    plain = type(model)(model.config)
    plain.load_state_dict({name: tensor.float() for name, tensor in model.state_dict().items()})
    plain.save_pretrained(out)
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(out)
    return out


def quantize(dense: Path, out: Path, *, method: str, bits: int, group_size: int, samples: int, length: int) -> float:
    """Quantize a dense folder and write the checkpoint; return the seconds that it took.

    Args:
        dense: a folder of dense weights.
        out: where the checkpoint goes.
        method: "gptq" or "awq".
        bits: bits of a code.
        group_size: columns of a group.
        samples: sequences of the calibration, from the reviews that zoquant carries.
        length: tokens of a sequence.
    """
    from gptqmodel import GPTQModel
    from gptqmodel.quantization.config import AWQConfig, GPTQConfig

    started = time.perf_counter()
    shared: dict[str, Any] = {"bits": bits, "group_size": group_size, "device": "cpu", "offload_to_disk": False}
    config = AWQConfig(**shared, format="gemm") if method == "awq" else GPTQConfig(**shared, desc_act=False)
    model = GPTQModel.load(str(dense), config)
    model.quantize(calibration(model.tokenizer, samples, length), batch_size=1)
    model.save(str(out))
    model.tokenizer.save_pretrained(out)
    return time.perf_counter() - started


def calibration(tokenizer: Any, samples: int, length: int) -> list[dict[str, list[int]]]:
    """Return token ids of the reviews that zoquant carries, `samples` sequences of at most `length` tokens."""
    lines = files("zoquant").joinpath("data/reviews/train.jsonl").read_text(encoding="utf-8").splitlines()
    ids = tokenizer(" ".join(json.loads(line)["sentence"] for line in lines))["input_ids"]
    parts = [ids[start : start + length] for start in range(0, len(ids), length)][:samples]
    return [{"input_ids": part, "attention_mask": [1] * len(part)} for part in parts if len(part) == length]


def main() -> None:
    """Read the command line and quantize."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--method", choices=("gptq", "awq"), default="gptq")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    said = vars(parser.parse_args())
    source, out = said.pop("source"), said.pop("out")
    with TemporaryDirectory() as folder:
        seconds = quantize(dense_folder(source, Path(folder)), out, **said)
    print(f"{out}: {said['method']} in {seconds / 60:.1f} minutes")


if __name__ == "__main__":
    main()
