"""A small sample for every class that is served and every format, and what has to be there for it.

`tests/testing/test_conformance.py` fails for one without.
"""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from tests.backends.aqlm import samples as aqlm
from tests.backends.auto_round import samples as auto_round
from tests.backends.awq import samples as awq
from tests.backends.bitnet import samples as bitnet
from tests.backends.bitsandbytes import samples as bitsandbytes
from tests.backends.compressed_tensors import samples as compressed_tensors
from tests.backends.eetq import samples as eetq
from tests.backends.exl3 import samples as exl3
from tests.backends.fp8 import samples as fp8
from tests.backends.gguf import samples as gguf
from tests.backends.gptq import samples as gptq
from tests.backends.hqq import samples as hqq
from tests.backends.metal import samples as metal
from tests.backends.mxfp4 import samples as mxfp4
from tests.backends.peft import samples as peft
from tests.backends.quanto import samples as quanto
from tests.backends.quark import samples as quark
from tests.backends.sinq import samples as sinq
from tests.backends.torchao import samples as torchao
from tests.backends.vptq import samples as vptq
from tests.toy import toy_layer
from zoquant.native import QuantEmbedding


def native_linear() -> nn.Module:
    return toy_layer(bias=True)


def native_embedding() -> nn.Module:
    return QuantEmbedding(toy_layer().packed, scale=1.5)


def dense_linear() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(16, 24)


def gguf_file(folder: Path) -> Path:
    """Write a llama of one layer, every matrix of another type."""
    from tests.backends.gguf.files import TinyFile
    from tests.backends.gguf.models import tiny

    types = ("Q8_0", "Q4_K", "Q6_K", "Q4_0", "Q5_1", "Q2_K", "IQ4_NL", "Q3_K")
    return TinyFile("llama", tiny("llama", num_hidden_layers=1), types=types).write(folder / "tiny.gguf")


def dense_folder(folder: Path) -> Path:
    """Write a llama of one layer in bfloat16, in two shards."""
    from tests.folders import save_folder, tiny_llama

    return save_folder(tiny_llama().to(torch.bfloat16), folder / "dense", shards=2)


BACKEND_SAMPLES: dict[str, Callable[[], nn.Module]] = {
    "zoquant.native.layers.QuantLinear": native_linear,
    "zoquant.native.layers.QuantEmbedding": native_embedding,
    "torch.nn.Module": dense_linear,
    **aqlm.BACKEND_SAMPLES,
    **hqq.BACKEND_SAMPLES,
    **vptq.BACKEND_SAMPLES,
    **bitsandbytes.BACKEND_SAMPLES,
    **gguf.BACKEND_SAMPLES,
    **gptq.BACKEND_SAMPLES,
    **awq.BACKEND_SAMPLES,
    **bitnet.BACKEND_SAMPLES,
    **torchao.BACKEND_SAMPLES,
    **quanto.BACKEND_SAMPLES,
    **quark.BACKEND_SAMPLES,
    **sinq.BACKEND_SAMPLES,
    **peft.BACKEND_SAMPLES,
}
FORMAT_SAMPLES: dict[str, Callable[[Path], Path]] = {
    "gguf": gguf_file,
    "dense": dense_folder,
    **aqlm.FORMAT_SAMPLES,
    **hqq.FORMAT_SAMPLES,
    **vptq.FORMAT_SAMPLES,
    **peft.FORMAT_SAMPLES,
    **bitsandbytes.FORMAT_SAMPLES,
    **torchao.FORMAT_SAMPLES,
    **quanto.FORMAT_SAMPLES,
    **gptq.FORMAT_SAMPLES,
    **awq.FORMAT_SAMPLES,
    **auto_round.FORMAT_SAMPLES,
    **compressed_tensors.FORMAT_SAMPLES,
    **fp8.FORMAT_SAMPLES,
    **metal.FORMAT_SAMPLES,
    **quark.FORMAT_SAMPLES,
    **eetq.FORMAT_SAMPLES,
    **exl3.FORMAT_SAMPLES,
    **sinq.FORMAT_SAMPLES,
    **mxfp4.FORMAT_SAMPLES,
    **bitnet.FORMAT_SAMPLES,
}

GPU = gptq.NEED_GPU | awq.NEED_GPU
"""Served classes whose kernels run on a GPU alone: no sample."""
BESIDES: dict[str, str] = {**peft.BESIDES, **quark.BESIDES}
"""What a sample needs besides the library of its class: the name of another library."""


def waits_for(name: str) -> str:
    """Return what is missing here for the sample of a claimed class or of a format, or nothing.

    Args:
        name: the dotted class, or the name of the format.
    """
    if name in GPU:
        return "a GPU"
    library = name.partition(".")[0] if "." in name else ""
    needed = [library, BESIDES.get(name, "")]
    return next((each for each in needed if each and each != "zoquant" and find_spec(each) is None), "")
