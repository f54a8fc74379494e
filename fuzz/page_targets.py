"""What people are shown of a run's folder, the report and the card: no text of the folder may become markup."""

import re
from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from pathlib import Path

from fuzz.guard import FindingError
from tests.report.runs import make_run
from zoquant.report.page import page
from zoquant.report.run_reading import Recorded
from zoquant.training import RunFolder
from zoquant.training.card import write_card

_ELEMENTS = {
    "html", "head", "meta", "title", "style", "body", "header", "nav", "main", "section", "footer", "h1", "h2", "h3",
    "h4", "p", "ul", "li", "a", "div", "dl", "dt", "dd", "figure", "figcaption", "table", "caption", "thead", "tbody",
    "tr", "th", "td", "details", "summary", "pre", "span", "svg", "g", "line", "path", "rect", "circle", "polyline",
    "text", "desc",
}  # fmt: skip
_STYLE = re.compile(r"[\w:;.,%# -]*")
_EMPTY = {"meta"}
_CODE = re.compile(r"```.*?\n```", re.DOTALL)
_FORBIDDEN = re.compile(r"<|[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class _Checker(HTMLParser):
    """Refuses elements and attributes that the report does not make itself."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, name: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(name, attrs)
        if name not in _EMPTY:
            self.open.append(name)

    def handle_startendtag(self, name: str, attrs: list[tuple[str, str | None]]) -> None:
        if name not in _ELEMENTS or not all(_is_harmless(key, value or "") for key, value in attrs):
            raise FindingError(f"the page holds <{name} {attrs}>.")

    def handle_endtag(self, name: str) -> None:
        if not self.open or self.open.pop() != name:
            raise FindingError(f"the page closes <{name}>, which is not open.")


def _is_harmless(attribute: str, value: str) -> bool:
    if attribute == "href":
        return value.startswith("#run-")
    if attribute == "style":
        return _STYLE.fullmatch(value) is not None
    return not attribute.startswith("on") and attribute not in ("src", "srcdoc", "action")


def _run(folder: Path) -> Path:
    return make_run(folder / "run", steps=1, layers=1).path


def _read_report(path: Path, _: bool) -> None:
    checker = _Checker()
    checker.feed(page([Recorded.read(path, path.name)]))
    checker.close()
    if checker.open:
        raise FindingError(f"the page leaves {checker.open} open.")


def _read_card(path: Path, _: bool) -> None:
    folder = RunFolder(path)
    text = write_card(folder).read_text(encoding="utf-8")
    folder.card.unlink()
    found = _FORBIDDEN.search(_CODE.sub("", text))
    if found:
        raise FindingError(f"the card holds {text[max(0, found.start() - 40) : found.end() + 40]!r}.")


PAGE_TARGETS: Mapping[str, tuple[Callable[[Path], Path], Callable[[Path, bool], object]]] = {
    "reader-report": (_run, _read_report),
    "reader-card": (_run, _read_card),
}
"""Name -> what writes a sound folder, and what shows it."""
