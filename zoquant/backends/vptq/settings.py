"""The settings of a VPTQ layer, as its config and `VQuantLinear` have them.

Source: VPTQ 0.0.5, vptq/layers/vqlinear.py; transformers 5.23, `VptqLayerConfig`.
"""

from collections.abc import Callable, Mapping
from typing import Any

from zoquant.backends.vptq.weights import Book, Part

Fail = Callable[[str, str, str], Exception]
"""Takes a setting, what was expected and what came; returns the error to raise."""

_MOST = 1 << 24


def parts_of(settings: Mapping[str, Any], fail: Fail) -> tuple[Part, ...]:
    """Return the parts of a layer's columns.

    Args:
        settings: `vector_lens`, `num_centroids`, `num_res_centroids`, each of outliers and the others; `group_num`,
            `group_size`, `outlier_size`, `is_indice_packed`, `indices_as_float`, `vector_quant_dim`.
        fail: makes the error for a setting.

    Raises:
        Exception: what `fail` returned, for a setting that is missing, out of range, or not supported.
    """
    for name, only in (("is_indice_packed", True), ("indices_as_float", False), ("vector_quant_dim", "out")):
        if settings.get(name, only) != only:
            raise fail(name, repr(only), repr(settings[name])[:80])
    outlier_length, length = _pair(settings, "vector_lens", fail)
    outlier_count, count = _pair(settings, "num_centroids", fail)
    residual = _pair(settings, "num_res_centroids", fail)[1]
    books = [Book("centroids.weight", count, _bits(count, fail))]
    if residual > 0:
        books.append(Book("res_centroids.weight", residual, _bits(residual, fail)))
    groups, size = (_number(name, settings.get(name), fail) for name in ("group_num", "group_size"))
    main = Part("indices", tuple(books), groups, size, _number("vector_lens", length, fail))
    if main.bits > 32 or residual > count:
        raise fail("num_res_centroids", f"at most {count}, and indices of at most 32 bits", str(residual))
    if outlier_length <= 1 or outlier_count <= 0:
        return (main,)
    book = Book("outlier_centroids.weight", outlier_count, 16)
    return (
        Part(
            "outlier_indices", (book,), 1, _number("outlier_size", settings.get("outlier_size"), fail), outlier_length
        ),
        main,
    )


def _pair(settings: Mapping[str, Any], name: str, fail: Fail) -> tuple[int, int]:
    pair = settings.get(name)
    if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(type(n) is int and n < _MOST for n in pair):
        raise fail(name, "two numbers", repr(pair)[:80])
    return pair[0], pair[1]


def _number(name: str, value: Any, fail: Fail) -> int:
    if type(value) is not int or not 1 <= value < _MOST:
        raise fail(name, f"a number from 1 to {_MOST}", repr(value)[:80])
    return value


def _bits(count: int, fail: Fail) -> int:
    if not 2 <= count <= 1 << 16 or count & (count - 1):
        raise fail("num_centroids", "a power of two up to 65536", str(count))
    return count.bit_length() - 1
