"""Mutations of JSON: a value deep inside is replaced, left out, renamed, or swapped with another."""

import json
from collections.abc import Iterator
from typing import Any

from fuzz.choices import Choices

HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 4, 7, 8, 16, 64, 128, 255, 1 << 16, (1 << 31) - 1, 1 << 31, 1 << 32, 1 << 62,
    (1 << 63) - 1, 1 << 64, 10**40, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", "4", "x" * 300,
    "\ud800", "\0", "<img src=x onerror=alert(1)>", "</pre><script>1</script>", "\x1b[2J\u202e", "`|*", "~nobody/x",
    "../config.json", "/etc/passwd", ".", "model.safetensors", "config.json", "float16", "int", "group", "gptq", "awq",
    [], {}, [[]], [0], [1, 1], [-1, 2], [1 << 40, 1 << 40], {"": {}}, [None], ["self_attn"], {"group_0": None},
)  # fmt: skip
"""Values that a careless reader trips over."""
Place = tuple[Any, Any]


def mutate_json(text: bytes, choices: Choices) -> bytes:
    """Change one thing in a JSON text; a text that is no JSON comes back as it was."""
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return json.dumps(mutate_tree(tree, choices)).encode("utf-8", "surrogatepass")


def mutate_tree(tree: Any, choices: Choices) -> Any:
    """Change one thing in a tree of lists and dicts, in place where possible, and return it."""
    places = list(_places(tree))
    if not places:
        return choices.one(HOSTILE)
    holder, key = choices.one(places)
    how = choices.below(6)
    if how == 0:
        del holder[key]
    elif how == 1 and isinstance(holder[key], int):
        holder[key] = _near(holder[key], choices)
    elif how == 2:
        other, name = choices.one(places)
        holder[key], other[name] = other[name], holder[key]
    elif how == 3 and isinstance(holder, dict):
        other, name = choices.one(places)
        holder[str(name) if choices.below(2) else f"{key}x"] = holder.pop(key)
    elif how == 4 and isinstance(holder, dict):
        holder[str(choices.one(HOSTILE))[:40]] = choices.one(HOSTILE)
    else:
        holder[key] = choices.one(HOSTILE)
    return tree


def _near(number: int, choices: Choices) -> int:
    return choices.one((number + 1, number - 1, number * 2, number // 2, -number, number + 8, number << 32))


def _places(tree: Any) -> Iterator[Place]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield tree, key
        yield from _places(value)
