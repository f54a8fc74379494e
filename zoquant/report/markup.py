"""HTML from Python: everything that is not markup already is escaped."""

import html
import re
from collections.abc import Iterable, Sequence
from typing import Any

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffe\uffff]")
_EMPTY = ("meta", "br", "line", "path", "rect", "circle", "polyline", "stop")


class Markup(str):
    """Text that is HTML or SVG already."""

    __slots__ = ()


def escaped(text: Any) -> Markup:
    """Return text as HTML shows it; characters that no page may hold become a replacement character."""
    if isinstance(text, Markup):
        return text
    valid = str(text).encode("utf-8", "replace").decode("utf-8")
    return Markup(html.escape(_CONTROL.sub("\ufffd", valid)))


def joined(parts: Iterable[Any]) -> Markup:
    """Return parts one after the other."""
    return Markup("".join(map(escaped, parts)))


def tag(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """Return an element.

    Args:
        name: its name.
        children: what is in it; text is escaped.
        attributes: by name, with `_` for `-` and a trailing `_` where the name is a word of Python; None is left out.
    """
    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escaped(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _EMPTY and not children:
        return Markup(f"<{name}{said}/>")
    return Markup(f"<{name}{said}>{joined(children)}</{name}>")


def table(caption: str, head: Sequence[Any], rows: Iterable[Sequence[Any]]) -> Markup:
    """Return a table whose first column heads its rows, in a box that scrolls sideways when it is too narrow."""
    columns = tag("tr", *(tag("th", each, scope="col") for each in head))
    body = [tag("tr", tag("th", row[0], scope="row"), *(tag("td", each) for each in row[1:])) for row in rows]
    whole = tag("table", tag("caption", caption), tag("thead", columns), tag("tbody", *body))
    return scrolling(caption, whole)


def scrolling(title: str, inside: Markup) -> Markup:
    """Return a box that scrolls when what is in it is too large, with the keyboard as well."""
    return tag("div", inside, class_="scroll", tabindex="0", role="region", aria_label=title)


def numbers(caption: str, head: Sequence[Any], rows: Iterable[Sequence[Any]]) -> Markup:
    """Return a table that opens at a click: the numbers behind a picture."""
    return tag("details", tag("summary", "Numbers"), table(caption, head, rows))


def figure(title: str, picture: Markup, *below: Any, wide: bool = False) -> Markup:
    """Return a picture under its title, with what explains it below."""
    return tag("figure", tag("h4", title), picture, *below, class_="wide" if wide else None)


def shown(value: Any) -> str:
    """Return a number with four digits that count, and anything else as text."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
