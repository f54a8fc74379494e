"""What importing zoquant must not import."""

import subprocess
import sys

import zoquant

FORBIDDEN = (
    "aqlm", "auto_gptq", "bitsandbytes", "compressed_tensors", "gguf", "gptqmodel", "hqq", "huggingface_hub",
    "hypothesis", "matplotlib", "optimum", "psutil", "pytest", "rich", "torchao", "transformers", "typer",
)  # fmt: skip
ALL = "[getattr(zoquant, name) for name in zoquant.__all__]"
"""Every public name, since each is imported at its first use."""


def imported_by(statement: str) -> set[str]:
    """Return the forbidden libraries that a fresh interpreter holds after a statement."""
    program = f"import sys\n{statement}\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split()) & set(FORBIDDEN)


def test_importing_zoquant_imports_no_library() -> None:
    assert imported_by(f"import zoquant; zoquant.list_backends(), zoquant.list_formats(); {ALL}") == set()


def test_importing_zoquant_imports_no_plugin() -> None:
    program = (
        f"import sys, zoquant; {ALL}\n"
        "print(*sorted(name for name in sys.modules if name.startswith('zoquant.backends.')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["zoquant.backends.plugins"]


def test_importing_every_plugin_imports_no_library_of_theirs() -> None:
    """A backend is imported before the library whose classes it serves."""
    targets = {claim.target.partition(":")[0] for claim in zoquant.list_backends().values()}
    claimed = {name.partition(".")[0] for name in zoquant.list_backends()} - {"zoquant", "torch"}
    assert not imported_by(f"import {', '.join(sorted(targets))}") & claimed


def test_attaching_and_training_native_layers_imports_no_library() -> None:
    program = """
from torch import nn
import torch, zoquant
from zoquant.native import FieldSpec, QuantLinear, QuantWeight
class Codec:
    name, block, fields = "c", 2, (FieldSpec("d", "scale", torch.float32),)
    def decode(self, codes, values, out):
        out.copy_(codes * values[0].unsqueeze(-1))
packed = QuantWeight(Codec(), torch.ones(2, 2, 2, dtype=torch.uint8), [torch.ones(2, 2)])
layer = QuantLinear(packed, compute_dtype=torch.float32)
optimizer = zoquant.ZOSGD(zoquant.attach(layer))
optimizer.step(lambda: layer(torch.ones(1, 4)).sum())
"""
    assert imported_by(program) == set()


def test_every_public_name_exists() -> None:
    for module in (zoquant, zoquant.testing):
        assert sorted(set(module.__all__)) == sorted(module.__all__)
        for name in module.__all__:
            assert getattr(module, name) is not None
