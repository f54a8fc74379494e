"""Every message of the page of troubleshooting is one that the program says."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import zoquant

ROOT = Path(zoquant.__file__).parent
PAGE = ROOT.parent / "docs" / "troubleshooting.md"
MESSAGES = re.findall(r"```text\n(.*?)\n```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


def told() -> Iterator[str]:
    """Yield every text of the source; what is put into it at run time is a zero byte."""
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_there_are_twenty_symptoms() -> None:
    assert len(MESSAGES) >= 20


def test_each_message_is_in_the_code() -> None:
    source = "\n\n".join(told())
    for message in MESSAGES:
        assert re.search(r"[^\n]*?".join(re.escape(part.strip("\n")) for part in message.split("…")), source), message
