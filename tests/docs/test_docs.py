"""The examples of the documents run, their command lines parse, and every public name stands on a page."""

import re
import shlex
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import click
import pytest
from typer.main import get_command

import zoquant
from docs.generate import generated
from tests.tiny import write_checkpoint, write_rows
from zoquant.cli.app import app

ROOT = Path(__file__).parent.parent.parent
PLUGIN = ROOT / "examples" / "third_party_plugin"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = [page for page in PAGES if "```python" in page.read_text(encoding="utf-8")]
LONGEST_README = 1000


def command_lines(page: Path) -> list[list[str]]:
    """Return the words of every command line of zoquant in the code blocks of a page."""
    blocks = re.findall(r"```\w*\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    whole = [line for line in lines if re.match(r"zoquant [a-z]", line) and "..." not in line]
    return [shlex.split(line, comments=True) for line in whole]


LINES = [(page.name, words) for page in PAGES for words in command_lines(page)]


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


@pytest.mark.parametrize(("page", "words"), LINES, ids=[f"{page}-{n}" for n, (page, _) in enumerate(LINES)])
def test_command_lines_have_flags_that_exist(page: str, words: list[str]) -> None:
    group: Any = get_command(app)
    _, command, rest = group.resolve_command(click.Context(group), words[1:])
    command.make_context(words[1], rest)


def test_every_public_name_has_a_page() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    missing = [name for name in zoquant.__all__ if f"zoquant.{name}" not in text and f"`{name}`" not in text]
    assert missing == []


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        if page.parent.name == "formats":
            continue  # parts of docs/formats.md
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_generated_pages_are_what_program_and_results_give() -> None:
    stale = [path.name for path, text in generated().items() if path.read_text(encoding="utf-8") != text]
    assert stale == [], "run `make docs`"


def test_the_readme_is_read_in_three_minutes_and_names_the_tests_of_every_change() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= LONGEST_README
    assert "\nmake test " in text
    assert "test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8").split()


def test_the_picture_of_the_demo_is_small_and_stands_alone() -> None:
    drawn = ElementTree.parse(ROOT / "docs" / "images" / "demo.svg").getroot()
    assert drawn.tag == "{http://www.w3.org/2000/svg}svg"
    assert (ROOT / "docs" / "images" / "demo.svg").stat().st_size < 150_000
    assert not [each for each in drawn.iter() if each.tag.endswith(("script", "image"))]
