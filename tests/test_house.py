"""The house: which wings there are, what may import what, and how large a room may be. CONTRIBUTING.md has the list."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import zoquant

ROOT = Path(zoquant.__file__).parent
PAGE = ROOT.parent / "CONTRIBUTING.md"
NOT_ROOMS = {"__init__", "__main__", "py"}
LONGEST_FILE, LONGEST_FUNCTION, MOST_FILES, MOST_FLOORS = 300, 50, 16, 13


def wings() -> dict[str, str]:
    """Return the wings and loose modules of the page with their phrases, from the ground up."""
    block = PAGE.read_text(encoding="utf-8").partition("\nzoquant/\n")[2].partition("```")[0]
    return dict(re.findall(r"^  (\w+)(?:\.py|/) +(.+)$", block, re.MULTILINE))


def modules() -> dict[str, Path]:
    """Return every module of zoquant by its dotted name."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = ("zoquant", *path.relative_to(ROOT).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def wing_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports_of(path: Path) -> Iterator[str]:
    """Yield the modules of zoquant that a file imports, in functions, for type checkers, and by name too.

    The table of plugins alone does not import what it names: the registry does, and knows none of it.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and path.stem != "plugins":
            names = re.findall(r"^(zoquant[.\w]+):\w+$", node.value)
        else:
            continue
        for name in names:
            if name.partition(".")[0] == "zoquant":
                yield name if name in MODULES else name.rpartition(".")[0]


IMPORTS = {name: set(imports_of(path)) & set(MODULES) for name, path in MODULES.items()}


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Yield every function of a file and the number of its lines, its docstring left out."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first, last = node.body[0], node.end_lineno or node.lineno
            said = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            yield node.name, last - node.lineno + 1 - (first.end_lineno - first.lineno + 1 if said else 0)  # type: ignore[operator]


def test_the_page_lists_the_tree() -> None:
    here = {path.stem for path in ROOT.iterdir() if path.name != "__pycache__"} - NOT_ROOMS
    assert set(wings()) == here
    assert len(here) <= 18
    assert sum(path.suffix == ".py" and path.stem not in NOT_ROOMS for path in ROOT.iterdir()) <= 3


@pytest.mark.parametrize("name", MODULES)
def test_a_wing_imports_downwards(name: str) -> None:
    order, wing = list(wings()), wing_of(name)
    if not wing or wing == "__main__":
        return
    allowed = {*order[: order.index(wing) + 1]}
    upward = {other for other in IMPORTS[name] if wing_of(other) not in allowed}
    assert not upward, f"{name} imports {sorted(upward)}, which lie above it or in the package itself"


def test_no_circle() -> None:
    """`__init__` files count as what they hand on: a module may import its own package's names no more than others."""
    try:
        list(TopologicalSorter(IMPORTS).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_no_more_than_so_many_floors() -> None:
    above: dict[str, set[str]] = defaultdict(set)
    for name, others in IMPORTS.items():
        above[wing_of(name)] |= {wing_of(other) for other in others} - {wing_of(name)}
    floor: dict[str, int] = {}
    for wing in TopologicalSorter(above).static_order():
        floor[wing] = 1 + max((floor[other] for other in above[wing]), default=0)
    assert max(floor.values()) <= MOST_FLOORS, floor


@pytest.mark.parametrize(
    "folder", sorted({path.parent for path in MODULES.values()}, key=str), ids=lambda path: path.name
)
def test_a_wing_is_no_warehouse(folder: Path) -> None:
    files = [path for path in folder.glob("*.py") if path.stem not in NOT_ROOMS]
    assert len(files) <= MOST_FILES, f"{folder} holds {len(files)} files: give it rooms"


@pytest.mark.parametrize("name", MODULES)
def test_no_file_and_no_function_is_long(name: str) -> None:
    """One that has to be says why at its head: a line of its docstring that begins with "Long:"."""
    text = MODULES[name].read_text(encoding="utf-8")
    if "\nLong: " in (ast.get_docstring(ast.parse(text)) or ""):
        return
    assert text.count("\n") <= LONGEST_FILE, name
    long = {function: lines for function, lines in functions(MODULES[name]) if lines > LONGEST_FUNCTION}
    assert not long, long


@pytest.mark.parametrize("wing", [name for name in wings() if (ROOT / name).is_dir()])
def test_the_first_line_of_a_wing_is_its_phrase(wing: str) -> None:
    tree = ast.parse((ROOT / wing / "__init__.py").read_text(encoding="utf-8"))
    said = ast.get_docstring(tree) or ""
    assert said.lower().startswith(wings()[wing].lower()), said
    others = [type(node).__name__ for node in tree.body[1:] if not isinstance(node, ast.ImportFrom | ast.Assign)]
    assert not others, f"{wing}/__init__.py hands on names and nothing else, and it holds {others}"
