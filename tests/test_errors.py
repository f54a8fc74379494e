"""All errors are one family, and every message says what to do."""

import ast
import inspect
from pathlib import Path

import pytest

import zoquant
from zoquant import errors, testing

FAMILY = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if cls.__module__ == errors.__name__]
ROOT = Path(zoquant.__file__).parent


@pytest.mark.parametrize("cls", FAMILY)
def test_one_family(cls: type[Exception]) -> None:
    assert issubclass(cls, errors.ZoquantError)
    assert cls.__doc__
    assert cls.__name__.endswith("Error")


@pytest.mark.parametrize(
    ("cls", "builtin"),
    [
        (errors.ShapeError, ValueError), (errors.ValueRangeError, ValueError), (errors.WriteError, OSError),
        (errors.OutputExistsError, FileExistsError), (testing.ConformanceError, AssertionError),
    ],
)  # fmt: skip
def test_what_python_code_expects(cls: type[Exception], builtin: type[Exception]) -> None:
    assert issubclass(cls, builtin)
    assert str(cls("a text")) == "a text"


def test_the_core_asserts_nothing_of_its_users() -> None:
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not isinstance(node, ast.Assert), f"{path.relative_to(ROOT)}:{node.lineno}"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a\nb", r"'a\nb'"), (None, "null"), (True, "true"), (1.5, "1.5"), ({"a": 1}, "an object"),
        (["a", None, [1, [2]]], "['a', null, [1, [...]]]"), (list(range(9)), "[0, 1, 2, 3, 4, 5, 6, 7, ...]"),
        ((), "[]"), ("x" * 200, "'" + "x" * 79),
    ],
)  # fmt: skip
def test_values_are_shown_as_people_write_them(value: object, text: str) -> None:
    assert errors.shown(value) == text


def test_what_holds_itself_a_thousand_times_is_shown_at_once() -> None:
    value: list[object] = []
    for _ in range(60):
        value = [value, value]
    assert errors.shown(value) == "[[[...], [...]], [[...], [...]]]"
