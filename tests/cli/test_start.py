"""How the command line starts: what it imports, and what Ctrl-C does meanwhile."""

import subprocess
import sys
from pathlib import Path

import pytest

import zoquant
from zoquant.cli.app import COMMANDS
from zoquant.record import rules
from zoquant.views.attach import attach


def python(*words: str, before: str = "", **environment: str) -> "subprocess.CompletedProcess[str]":
    root = str(Path(zoquant.__file__).parent.parent)
    environment |= {"PYTHONPATH": ":".join(filter(None, (before, root)))}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment)


@pytest.mark.parametrize(
    ("run", "absent"),
    [
        ("import zoquant; assert zoquant.errors and zoquant.list_formats()", {"torch", "typer", "numpy"}),
        ("import zoquant.cli.app", {"torch", "transformers", "numpy"}),
        ("from zoquant.cli.inspect import inspect_command as run; run('base.gguf')", {"transformers"}),
    ],
    ids=["package", "command line", "inspect"],
)
def test_what_is_not_imported(run: str, absent: set[str]) -> None:
    ends = f"import sys\ntry:\n {run}\nexcept zoquant.errors.CheckpointError:\n pass\nprint(*sys.modules)"
    done = python("-c", "import zoquant.errors\n" + ends)
    assert not done.stderr
    assert not absent & set(done.stdout.split())


@pytest.mark.parametrize("words", [("--help",), ("--version",), ("backends", "--json")], ids=" ".join)
def test_what_needs_no_torch(words: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('not here')")
    done = python("-m", "zoquant", *words, before=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    if words == ("--version",):
        assert done.stdout == f"zoquant {zoquant.__version__}\n"
    elif words == ("--help",):
        assert all(name in done.stdout for name in COMMANDS)


def test_ctrl_c_while_libraries_are_imported(tmp_path: Path) -> None:
    # A job in the background inherits that Ctrl-C is ignored.
    heeds = "signal.signal(signal.SIGINT, signal.default_int_handler)"
    (tmp_path / "torch.py").write_text(f"import os, signal\n{heeds}\nos.kill(os.getpid(), signal.SIGINT)\n")
    done = python("-m", "zoquant", "inspect", "base.gguf", before=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt")
    done = python("-m", "zoquant", "--help", before=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_public_names_are_imported_at_their_first_use() -> None:
    assert all(getattr(zoquant, name) is not None for name in zoquant.__all__)
    assert set(zoquant.__all__) <= set(dir(zoquant))
    assert zoquant.attach is attach
    assert zoquant.rules is rules
    with pytest.raises(AttributeError, match="module 'zoquant' has no attribute 'atach'"):
        zoquant.atach  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("zoquant ex", "export"),
        ("zoquant export --de", "--delta"),
        ("zoquant train --eval", "--eval-data --eval-every"),
        ("zoquant train m.gguf --gradient ba", "backward"),
    ],
)
def test_what_a_shell_completes(typed: str, offered: str) -> None:
    asked = {"_ZOQUANT_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
    done = python("-m", "zoquant", **asked)
    assert done.stdout.split() == offered.split(), done.stderr
