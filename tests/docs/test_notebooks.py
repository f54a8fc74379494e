"""The notebooks run from the first cell to the last, and are kept without large outputs."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import write_checkpoint

NOTEBOOKS = sorted((Path(__file__).parent.parent.parent / "examples" / "notebooks").glob("*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]
LARGEST = 20_000


def test_there_are_three() -> None:
    assert NAMES == ["first_finetune", "your_own_format", "your_own_reward"]
    assert all(path.stat().st_size < LARGEST for path in NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_the_cells_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path / "model.gguf")
    monkeypatch.chdir(tmp_path)
    session: dict[str, Any] = {"__name__": "notebook"}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), str(path), "exec"), session)


@pytest.mark.slow
@pytest.mark.skipif(not all(map(find_spec, ("nbclient", "ipykernel"))), reason="needs nbclient and ipykernel")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_a_kernel_runs_it(path: Path, tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    write_checkpoint(tmp_path / "model.gguf")
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    NotebookClient(book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert any(cell.outputs for cell in book.cells if cell.cell_type == "code")
