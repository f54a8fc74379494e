"""llama.cpp computes of the tiny file of each kind what the model computes that it was written from.

So the names, the order of rows and the numbers of `tests.backends.gguf.files` are those of llama.cpp.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.backends.gguf.files import VOCAB, TinyFile
from tests.backends.gguf.models import metadata_of, relative_error, tiny

pytestmark = pytest.mark.client

ROOT = Path(__file__).parents[2]
BOUND = 5e-3
"""llama.cpp keeps keys and values in float16. Measured: 0.0004 to 0.002."""
CASES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}), ("gemma", {}), ("granite", {}), ("smollm3", {}), ("olmo2", {}), ("glm4", {}), ("starcoder2", {}),
    ("stablelm", {}), ("phi2", {}), ("cohere2", {}),
    ("command-r", {"use_qk_norm": False}),  # llama.cpp reads norms of heads in models of 64 layers alone
]  # fmt: skip
IDS = [5, 17, 23, 9, 40, 3, 77, 12]


@pytest.mark.parametrize(("arch", "changes"), CASES, ids=[arch for arch, _ in CASES])
def test_llamacpp_computes_the_model_of_a_kind(tmp_path: Path, arch: str, changes: dict[str, Any]) -> None:
    python = Path(os.environ.get("ZOQUANT_LLAMACPP_PYTHON", ROOT / ".venv-client" / "bin" / "python"))
    if not python.exists():
        pytest.skip(f"no llama.cpp at {python}: run `make test-client`, or set ZOQUANT_LLAMACPP_PYTHON.")
    model = tiny(arch, **changes)
    file = TinyFile(arch, model, metadata_of(model), edit=lambda writer: writer.add_tokenizer_model("no_vocab"))
    path, prompts, out = file.write(tmp_path / "tiny.gguf"), tmp_path / "prompts.json", tmp_path / "logits.npy"
    assert max(IDS) < VOCAB
    prompts.write_text(json.dumps([IDS]))
    script = Path(__file__).with_name("llamacpp_logits.py")
    command = [str(part) for part in (python, "-I", script, path, prompts, out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"llama.cpp ended with {done.returncode}:\n{done.stderr}"
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([IDS])).logits[0, -1]
    assert relative_error(torch.from_numpy(np.load(out))[0], expected) < BOUND
