"""The page of a report: what it shows, that it stands alone, and that nothing of a run is taken for markup."""

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.report.runs import HOSTILE, KINDS, evaluation, make_run
from zoquant.errors import CheckpointError, OutputExistsError
from zoquant.report import write_report
from zoquant.report.axes import tick_text, ticks
from zoquant.report.figures import smoothed
from zoquant.report.moves import layer_and_kind
from zoquant.report.page import templates
from zoquant.report.run_reading import thinned

EMPTY = {"meta"}


class Page(HTMLParser):
    """A page, parsed: every element must be closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None], tuple[str, ...]]] = []
        self.text: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, name: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((name, dict(attrs), tuple(self.open)))
        self.open.append(name)

    def handle_startendtag(self, name: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((name, dict(attrs), tuple(self.open)))

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name

    def handle_data(self, data: str) -> None:
        self.text.append((self.open[-1] if self.open else "", data))

    def all(self, name: str) -> Iterator[dict[str, str | None]]:
        return (attributes for found, attributes, _ in self.elements if found == name)

    def said(self, name: str) -> str:
        return " ".join(data for element, data in self.text if element == name)


def page_of(*runs: Path) -> Page:
    out = runs[0] / "several.html" if len(runs) > 1 else None
    if out is not None:
        out.unlink(missing_ok=True)
    return Page(write_report(runs, out).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("objective", "title", "label"),
    [
        ("loss", "Training loss", "loss (nats)"),
        ("f1", "Training objective", "objective: −f1"),
        ("margin", "Training objective", "objective: margin"),
        (HOSTILE, "Training objective", f"objective: {HOSTILE:.40}".replace("\x00", "\ufffd")),
    ],
)
def test_what_is_made_smaller_is_named(tmp_path: Path, objective: str, title: str, label: str) -> None:
    first, second = (make_run(tmp_path / name).path for name in "ab")
    settings = json.loads((first / "settings.json").read_text()) | {"objective": objective}
    (first / "settings.json").write_text(json.dumps(settings))
    assert title in page_of(first).said("h4")
    assert label in page_of(first).said("text")
    assert label in page_of(first, second).said("text")
    assert ("loss (nats) or" in page_of(second, first).said("text")) == (objective != "loss")


def test_one_run(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "first").path)
    assert page.said("h1") == "Report: first"
    heads = page.said("h4")
    for title in (
        "Training loss", "Held-out accuracy", "Held-out loss", "Distribution of the derivative", "Learning rate",
        "Share of the values that a probe moved", "Time of a step", "Size of the delta",
    ):  # fmt: skip
        assert title in heads
    assert "0.5 → 0.8" in page.said("dd")
    assert "95 %: 0.4 to 0.6 → 0.7 to 0.9" in page.said("dd")
    assert "Test accuracy" in page.said("dt")
    assert "95 %: 0.65 to 0.85, of step 20" in page.said("dd")
    cells = page.said("td")
    assert "0.01, calibrated" in cells
    assert "512.0 MiB" in cells
    assert all(kind in page.said("text") for kind in KINDS)
    assert "plain 0" in page.said("pre")
    assert "plain 40" in page.said("pre")
    assert "1 of 40 steps were clipped" in page.said("figcaption")


def test_several_runs(tmp_path: Path) -> None:
    """Two of the same name are told apart, and what differs is said."""
    runs = [make_run(tmp_path / "a" / "run").path, make_run(tmp_path / "b" / "run", steps=20, text="other").path]
    page = page_of(*runs)
    assert page.said("h2").startswith("Comparison")
    assert [link["href"] for link in page.all("a")] == ["#run-0", "#run-1"]
    assert {section.get("id") for section in page.all("section")} == {None, "run-0", "run-1"}
    assert str(runs[0]) in page.said("li")
    assert "Settings that differ" in page.said("caption")
    same = page_of(runs[0], make_run(tmp_path / "c").path)
    assert "All settings are the same." in same.said("p")


def test_answers_before_and_after(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    tables = iter([[[3, 1], [4, 0]], [[2, 2], [0, 4]]])
    lines = [line | ({"eval_answers": next(tables)} if "eval_primary" in line else {}) for line in lines]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    cells = page_of(run.path).said("td")
    assert "3 → 2 1 → 2 4 → 0 0 → 4" in cells
    lines[0]["eval_answers"] = [[3, "1"], [4, 0]]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "2 → 2 2 → 2 0 → 0 4 → 4" in page_of(run.path).said("td")
    lines[-1]["eval_answers"] = [[1, 2, 3]]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "true label" not in page_of(run.path).said("th")


def test_both_ways_of_a_run_are_beside_each_other(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", steps=40)
    said = json.loads(run.settings.read_text()) | {"steps": 30, "forward_steps": 10, "gradient": "backward"}
    run.settings.write_text(json.dumps(said))
    lines = run.metrics.read_text().splitlines()
    middle = json.dumps(evaluation(30, 0.7, "plain"))
    run.metrics.write_text("".join(line + "\n" for line in [*lines[:31], middle, *lines[31:]]))
    page = page_of(run.path)
    assert "Comparison" in page.said("h2")
    assert "a, backward" in page.said("th")
    assert "a, forward" in page.said("th")
    cells = page.said("td")
    assert "0.5 → 0.7" in cells
    assert "0.7 → 0.8" in cells


def test_the_page_stands_alone(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "a").path, make_run(tmp_path / "b").path)
    assert not {"script", "link", "img", "iframe", "object", "image", "use"} & {name for name, _, _ in page.elements}
    for _, attributes, _ in page.elements:
        assert not {"src", "srcset", "xlink:href"} & set(attributes)
        assert not [name for name in attributes if name.startswith("on")]
        assert (attributes.get("href") or "#").startswith("#")
    assert not re.search(r"url\(|@import|https?:", page.said("style"))
    policy = next(each for each in page.all("meta") if each.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'"


def test_pictures_are_told_in_words_and_numbers(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run", text=HOSTILE).path)
    pictures = [each for each in page.all("svg") if each.get("aria-hidden") != "true"]
    assert len(pictures) > 5
    assert all(each["role"] == "img" and each["aria-label"] for each in pictures)
    inside = [name for name, _, above in page.elements if above and above[-1] == "svg"]
    assert inside.count("desc") == len(pictures)
    assert page.said("summary").count("Numbers") >= len(pictures)
    assert all(each["scope"] in ("row", "col") for each in page.all("th"))
    assert next(page.all("html"))["lang"] == "en"


def test_everything_from_a_run_is_escaped(tmp_path: Path) -> None:
    """The names, the text and the numbers of two hostile runs add no element, no attribute and no comment."""
    hostile = tmp_path / "<script>alert(1)<b>&amp;\"'"
    runs = [make_run(hostile / "run", text=HOSTILE).path, make_run(tmp_path / "b" / "run", text=HOSTILE).path]
    tame = [make_run(tmp_path / name / "run", text="plain").path for name in ("c", "d")]
    page, expected = page_of(*runs), page_of(*tame)
    assert {name for name, _, _ in page.elements} == {name for name, _, _ in expected.elements}
    known = {key for _, attributes, _ in expected.elements for key in attributes}
    assert {key for _, attributes, _ in page.elements for key in attributes} == known
    text = write_report(runs, tmp_path / "out.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "<!--" not in text.removeprefix("<!DOCTYPE html>")
    assert "\x00" not in text
    assert text.count("&lt;script&gt;alert(1)") > 30


def test_numbers_that_are_none_are_left_out(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=5)
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    lines[2] |= {"derivative": "<b>", "moved": None, "lr": float("nan"), "seconds": 10**400}
    lines[3] |= {"loss": float("inf"), "overhead": True}
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = page_of(folder.path)
    assert "0 of 3 steps were clipped" in page.said("figcaption")
    assert all("nan" not in (each["points"] or "") for each in page.all("polyline"))


def test_a_run_under_way_and_one_of_no_steps(tmp_path: Path) -> None:
    begun = make_run(tmp_path / "begun", finished=False, samples=False)
    begun.delta.unlink()
    with open(begun.metrics, "a") as file:
        file.write('{"step": 41, "lo')
    assert "is under way, or was ended from outside: 40 of 40" in page_of(begun.path).said("p")
    begun.metrics.unlink()
    begun.calibration.unlink()
    page = page_of(begun.path)
    assert "0 of 40" in page.said("p")
    assert list(page.all("svg")) == []


def test_long_runs_make_small_pages(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=20_000, layers=80)
    path = write_report([run.path])
    assert path.stat().st_size < 500_000
    assert "Each point of a curve is the mean of 67 steps." in Page(path.read_text(encoding="utf-8")).said("p")


def test_where_the_page_goes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run").path
    assert write_report([run]) == write_report([run]) == run / "report.html"
    out = write_report([run], tmp_path / "page.html")
    before = out.read_bytes()
    with pytest.raises(OutputExistsError, match=r"page\.html: already exists"):
        write_report([run], out)
    assert out.read_bytes() == before
    with pytest.raises(ValueError, match="got no run"):
        write_report([])


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("settings.json", None, "holds no run, expected settings.json"),
        ("settings.json", "{", "settings.json: cannot be read"),
        ("metrics.jsonl", '{}\n{"step": 1}\n', "metrics.jsonl, line 1: is damaged, but a later one is whole"),
        ("metrics.jsonl", f'{{"step": {10**400}}}\n', "metrics.jsonl, line 1: expected an object with a step"),
        ("metrics.jsonl", '{"step": 1}\nnot\n{"step": 2}\n', "metrics.jsonl, line 2: is damaged, but a later one"),
        ("samples.jsonl", '{"step": 1, "prompt": 2}\n', "samples.jsonl, line 1: expected prompt and text"),
        ("delta.safetensors", "x", r"delta\.safetensors: .*The file is damaged"),
    ],
)
def test_damaged_runs(tmp_path: Path, file: str, text: str | None, message: str) -> None:
    run = make_run(tmp_path / "run").path
    (run / file).unlink()
    if text is not None:
        (run / file).write_text(text)
    with pytest.raises(CheckpointError, match=message):
        write_report([run])
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("tail", [b'{"step": 41, "lo', b"\x00" * 4096 + b"\n", b"not\n", b"{}\n\n[1]\n"])
def test_what_a_power_failure_left_at_the_end_is_left_out(tmp_path: Path, tail: bytes) -> None:
    """A run with it goes on, so it can be shown too."""
    whole, torn = make_run(tmp_path / "whole").path, make_run(tmp_path / "torn").path
    for name in ("metrics.jsonl", "samples.jsonl"):
        with open(torn / name, "ab") as file:
            file.write(tail)
    pages = [write_report([run]).read_text(encoding="utf-8") for run in (whole, torn)]
    assert pages[1] == pages[0].replace("whole", "torn")


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("model.layers.3.mlp.up_proj.d", (3, "mlp.up_proj")),
        ("transformer.h.11.attn.c_attn.scale", (11, "attn.c_attn")),
        ("model.layers.3.mlp.experts.17.w1.scales", (3, "mlp.experts.*.w1")),
        ("model.layers.3.mlp.experts.17.scales", (3, "mlp.experts.*")),
        ("model.layers.7.scale", (7, "model.layers")),
        ("lm_head.m", (None, "lm_head")),
        ("weight", (None, "weight")),
    ],
)
def test_layers_and_kinds(key: str, place: tuple[int | None, str]) -> None:
    assert layer_and_kind(key) == place


@given(st.floats(-1e6, 1e6), st.floats(1e-5, 1e6))
def test_ticks_are_few_round_and_told_apart(low: float, width: float) -> None:
    found = ticks(low, low + width)
    assert 1 <= len(found) <= 11
    assert all(low - width * 1e-6 <= each <= low + width * (1 + 1e-6) for each in found)
    assert len({tick_text(each, low, low + width) for each in found}) == len(found) or max(abs(low), width) >= 1e5


@given(st.lists(st.floats(-1e6, 1e6), max_size=2000))
def test_thinning_keeps_the_mean(values: list[float]) -> None:
    points = [(float(x), y) for x, y in enumerate(values)]
    found = thinned(points)
    assert len(found) <= 300
    if len(values) <= 300:
        assert found == points
    if points:
        assert found[-1][0] == points[-1][0]
        assert min(values) <= min(y for _, y in found) + 1e-6


def test_smoothing_has_no_pull_of_its_start() -> None:
    assert smoothed([2.0, 2.0]) == pytest.approx([2.0, 2.0])
    assert smoothed([]) == []


@given(st.text())
def test_escaping(text: str) -> None:
    written = templates().from_string("{{ text }}").render(text=text)
    assert not set(written) & set("<>\"'\x00")
    page = Page(templates().from_string('<p title="{{ text }}">{{ text }}</p>').render(text=text))
    (paragraph,) = page.all("p")
    assert (paragraph["title"] or "").replace("\r", "\n") == page.said("p").replace("\r", "\n")
