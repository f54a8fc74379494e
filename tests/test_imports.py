"""What importing zoquant must not import, and what may import what."""

import ast
import re
import subprocess
import sys
from itertools import chain
from pathlib import Path

import zoquant

FORBIDDEN = (
    "aqlm", "auto_gptq", "bitsandbytes", "compressed_tensors", "gguf", "gptqmodel", "hqq", "huggingface_hub",
    "hypothesis", "matplotlib", "optimum", "psutil", "pytest", "rich", "torchao", "transformers", "typer",
)  # fmt: skip
ROOT = Path(zoquant.__file__).parent
DESIGN = Path(__file__).parent.parent / "docs" / "design.md"
ABOVE = ("backends",)
"""Plugins: they import the core, which does not know them."""


def imported_by(statement: str) -> set[str]:
    """Return the forbidden libraries that a fresh interpreter holds after a statement."""
    program = f"import sys\n{statement}\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split()) & set(FORBIDDEN)


def test_importing_zoquant_imports_no_library() -> None:
    assert imported_by("import zoquant, zoquant.testing; zoquant.list_backends(); zoquant.list_formats()") == set()


def test_functions_keep_their_names() -> None:
    """`zoquant.backends` is a function and a package: importing a backend must not replace the function."""
    program = """
import zoquant
from zoquant.backends import native
from zoquant import attach, export, load
assert all(callable(each) for each in (zoquant.backends, zoquant.attach, zoquant.export, zoquant.load))
"""
    assert imported_by(program) == set()


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


def imports_of(path: Path) -> set[str]:
    """Return the modules of zoquant that a file imports at its top."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module == "zoquant":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("zoquant."):
            found.add(node.module.split(".")[1])
    return found


def layers() -> list[list[str]]:
    """Return the table of the design page, from the ground up."""
    table = DESIGN.read_text(encoding="utf-8").partition("| layer | modules |")[2].partition("\n\n")[0]
    return [re.findall("`([a-z_]+)`", line) for line in reversed(table.splitlines()[2:])]


def test_every_module_has_a_layer() -> None:
    modules = {path.stem for path in ROOT.glob("*.py")} | {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert sorted([*chain.from_iterable(layers()), *ABOVE]) == sorted(modules - {"__init__"})


def test_a_module_imports_downwards() -> None:
    allowed: set[str] = set()
    for layer in layers():
        allowed |= set(layer)
        for name in layer:
            for path in [ROOT / f"{name}.py", *(ROOT / name).rglob("*.py")]:
                if path.exists():
                    assert imports_of(path) <= allowed, path


def test_the_core_imports_no_backend() -> None:
    for path in ROOT.glob("*.py"):
        assert "backends" not in imports_of(path) or path.name in ("__init__.py", "demo.py"), path


def test_every_public_name_exists() -> None:
    for module in (zoquant, zoquant.testing):
        assert sorted(set(module.__all__)) == sorted(module.__all__)
        for name in module.__all__:
            assert getattr(module, name) is not None
