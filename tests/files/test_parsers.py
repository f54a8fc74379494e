"""Every function of zoquant that parses bytes or text is entered by a fuzz target, or it stands here why not."""

import ast
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import zoquant
from fuzz.targets import make_target, target_names

ROOT = Path(zoquant.__file__).parent
PARSING = {
    "parse_json", "loads", "safe_load", "parse", "read_text", "read_bytes", "unpack", "iter_unpack", "unpack_from",
    "frombuffer", "fromhex", "memmap", "pread", "reader", "DictReader", "read_table", "load_dataset", "load_from_disk",
}  # fmt: skip
"""What parses, or reads what is to be parsed."""
NOT_FUZZED = {
    "cli/bench/machine.py": "the machine's own files",
    "kernels/build.py": "the machine's own files, and zoquant's sources",
    "training/resident_memory.py": "the machine's own files",
    "testing/": "asked by who tests a plugin of their own",
    "distributed/exchange.py": "the ranks of one run trust each other",
    "distributed/joining.py": "what this process itself wrote a line before",
    "tasks/rewards.py": "the answer of a command or a URL that the user has named",
    "tasks/rows/hub.py": "the library datasets reads these",
    "training/run_folder.py:check": "what this process itself wrote a line before",
    "checkpoint/exporting.py": "writes; the places are those that a format's target has checked",
    "native/words.py": "values that lie in memory already",
    "backends/gguf/blocks/base.py": "values that lie in memory already",
    "tasks/template.py": "the template of who trains; what a config may say of it is refused by test_config",
}
"""A module, a folder or a function, and why no target enters it."""


def calls(node: ast.AST, inside: str = "<module>") -> Iterator[tuple[str, str]]:
    """Yield the function and the name of each call in a tree."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Call):
            called = child.func
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            yield inside, name
        yield from calls(child, child.name if isinstance(child, ast.FunctionDef) else inside)


def parsers() -> set[str]:
    """Return all functions that parse, as `file:function`."""
    found: set[str] = set()
    for path in ROOT.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        name = path.relative_to(ROOT).as_posix()
        found |= {f"{name}:{function}" for function, called in calls(tree) if called in PARSING}
    return found


def test_every_parser_is_fuzzed(tmp_path: Path) -> None:
    entered: set[str] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(f"{ROOT}{os.sep}"):
            entered.add(f"{Path(file).relative_to(ROOT).as_posix()}:{frame.f_code.co_name}")

    for name in target_names():
        (tmp_path / name).mkdir()
        target = make_target(name, tmp_path / name)
        sys.setprofile(note)
        try:
            target.use(target.path, True)  # its sound sample
        finally:
            sys.setprofile(None)
    missing = {each for each in parsers() - entered if not each.startswith(tuple(NOT_FUZZED))}
    assert not missing, f"no fuzz target enters {sorted(missing)}: add one to fuzz/, or say why not"
    unknown = {each for each in NOT_FUZZED if not any(name.startswith(each) for name in parsers())}
    assert not unknown, f"no parser stands at {sorted(unknown)}"
