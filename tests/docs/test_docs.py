"""The examples of the documents run, and every public name stands on a page."""

import re
from pathlib import Path
from typing import Any

import pytest

import zoquant
from tests.tiny import write_checkpoint, write_rows

ROOT = Path(__file__).parent.parent.parent
PLUGIN = ROOT / "examples" / "third_party_plugin"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = [page for page in PAGES if "```python" in page.read_text(encoding="utf-8")]


@pytest.mark.parametrize("page", EXAMPLES, ids=[page.name for page in EXAMPLES])
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path / "model.gguf")
    write_rows(tmp_path / "train.jsonl")
    write_rows(tmp_path / "test.jsonl")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(PLUGIN))
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    session: dict[str, Any] = {"__name__": "example"}
    for block in blocks:
        exec(compile(block, str(page), "exec"), session)


def test_the_plugin_on_its_page_is_the_example() -> None:
    page = (ROOT / "docs" / "add-a-format.md").read_text(encoding="utf-8")
    code = (PLUGIN / "nib3_zoquant.py").read_text(encoding="utf-8").split('"""\n\n', 1)[1]
    folder, layer, *_ = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert f"{folder}\n\n{layer}" == code
    lines = sum(bool(line) for line in code.splitlines())
    assert lines <= 35
    assert f"The plugin has {lines} lines." in page


def test_every_public_name_has_a_page() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    missing = [name for name in zoquant.__all__ if f"zoquant.{name}" not in text and f"`{name}`" not in text]
    assert missing == []


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"
