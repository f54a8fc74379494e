"""The page in a real browser: it asks the network for nothing, fits a phone, and follows light and dark."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from html import unescape
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.report.runs import HOSTILE, make_run
from zoquant.report import write_report

pytestmark = pytest.mark.client

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PROBE = """<!DOCTYPE html><body style="margin:0">
<iframe src="page.html" style="width:WIDTHpx;height:900px;border:0"></iframe>
<pre></pre><script>
document.querySelector("iframe").onload = event => {
  const page = event.target.contentDocument, style = event.target.contentWindow.getComputedStyle;
  for (const each of page.querySelectorAll("details")) each.open = true;
  const root = page.documentElement, seen = {
    overflow: root.scrollWidth - root.clientWidth,
    wide: [...page.querySelectorAll("main *")].filter(each => !each.closest(".scroll")
      && each.getBoundingClientRect().right > root.clientWidth + 1).map(each => each.tagName),
    cut: [...page.querySelectorAll(".scroll")].filter(each => !each.querySelector("svg.map")
      && [...each.children].some(inner => inner.getBoundingClientRect().right > root.clientWidth + 1))
      .map(each => each.ariaLabel),
    page: style(page.body).backgroundColor, ink: style(page.body).color,
    charts: [...page.querySelectorAll("svg[role=img]")].map(each => each.getBoundingClientRect().height),
    text: Math.min(...[...page.querySelectorAll("svg.chart text")].map(each => each.getBoundingClientRect().height)),
    scripts: page.scripts.length, images: page.images.length, title: page.title,
    alerts: event.target.contentWindow.alerted === true,
  };
  document.querySelector("pre").textContent = JSON.stringify(seen);
};
</script></body>"""


@pytest.fixture
def asked() -> list[str]:
    return []


@pytest.fixture
def server(tmp_path: Path, asked: list[str]) -> Iterator[str]:
    """Serve a folder on the loopback and note what is asked for."""

    class Handler(SimpleHTTPRequestHandler):
        def log_request(self, *told: Any) -> None:
            asked.append(self.path)

        def log_error(self, *told: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path))) as running:
        Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


def browse(tmp_path: Path, url: str, *options: str) -> str:
    """Return what a browser makes of a page, its messages before it."""
    if BROWSER is None:
        pytest.skip("no Chromium here: on Debian, apt-get install chromium")
    command = [
        BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr",
        "--virtual-time-budget=4000", f"--user-data-dir={tmp_path / 'profile'}", *options, url,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    assert console == []
    return done.stdout


def measured(tmp_path: Path, server: str, width: int, *options: str) -> dict[str, Any]:
    (tmp_path / "probe.html").write_text(PROBE.replace("WIDTH", str(width)))
    dumped = browse(tmp_path, f"{server}/probe.html", "--dump-dom", f"--window-size={max(width, 600)},900", *options)
    told = re.search(r"<pre>(.*)</pre>", dumped)
    assert told is not None
    assert told.group(1), "the page was not measured"
    found: dict[str, Any] = json.loads(unescape(told.group(1)))
    return found


@pytest.fixture
def page(tmp_path: Path) -> Path:
    runs = [make_run(tmp_path / "a").path, make_run(tmp_path / "b", steps=20, text=HOSTILE).path]
    return write_report(runs, tmp_path / "page.html")


@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_fits_and_asks_for_nothing(
    tmp_path: Path, server: str, asked: list[str], page: Path, width: int
) -> None:
    found = measured(tmp_path, server, width)
    assert found["overflow"] == 0
    assert found["wide"] == []
    assert len(found["charts"]) > 10
    assert min(found["charts"]) > 100
    assert found["text"] > 9
    assert (found["scripts"], found["images"], found["alerts"]) == (0, 0, False)
    assert set(asked) - {"/favicon.ico"} == {"/probe.html", "/page.html"}


def test_light_and_dark(tmp_path: Path, server: str, page: Path) -> None:
    """The paper is light with dark ink, or the other way around, with enough contrast (WCAG 2.2, 1.4.3)."""
    light = measured(tmp_path, server, 800, "--blink-settings=preferredColorScheme=1")
    dark = measured(tmp_path, server, 800, "--blink-settings=preferredColorScheme=0")
    assert luminance(light["page"]) > 0.8 > 0.1 > luminance(dark["page"])
    for found in (light, dark):
        low, high = sorted((luminance(found["page"]), luminance(found["ink"])))
        assert (high + 0.05) / (low + 0.05) > 7


def test_the_page_prints_whole(tmp_path: Path, server: str, page: Path) -> None:
    """No table is wider than the paper, and the ink is dark on a machine that prefers dark."""
    style = page.read_text().replace("@media print", "@media all").replace("@media screen and", "@media print and")
    page.write_text(style)  # a browser measures what it shows: the rules of print, shown at the width of A4
    found = measured(tmp_path, server, 700, "--blink-settings=preferredColorScheme=0")
    assert found["cut"] == []
    assert luminance(found["ink"]) < 0.1


def test_a_picture_of_the_page(tmp_path: Path, server: str, page: Path) -> None:
    browse(tmp_path, f"{server}/page.html", f"--screenshot={tmp_path / 'page.png'}", "--window-size=1200,2000")
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "page.png").stat().st_size > 50_000


def luminance(color: str) -> float:
    """Return the relative luminance of `rgb(r, g, b)` (WCAG 2.2)."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
