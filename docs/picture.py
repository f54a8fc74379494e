"""Draw the accuracy of a run as its report does: `python -m docs.picture runs/demo docs/images/demo.svg`."""

import re
import sys
from pathlib import Path

from zoquant.report.figures import figures_of
from zoquant.report.page import templates
from zoquant.report.run_reading import Recorded

_TITLE = "Held-out accuracy"


def picture(run: Path) -> str:
    """Return the picture as SVG that stands alone, on white.

    Args:
        run: the folder of a run with an accuracy.
    """
    chart = next(each.chart for each in figures_of(Recorded.read(run, run.name)) if each.title == _TITLE)
    drawn = str(templates().get_template("figure.html").module.picture(chart))  # type: ignore[attr-defined]
    colors, style = templates().get_template("style.css").render().split("@media", 1)
    rules = "".join(
        line
        for line in style.splitlines(keepends=True)
        if re.match(r"\.(grid|axis|line|span|dot|c\d)\b|svg text", line)
    )
    head = '<svg xmlns="http://www.w3.org/2000/svg" font-family="system-ui, sans-serif"'
    return (
        drawn.strip()
        .replace("<svg", head, 1)
        .replace("<title>", f"<style>{colors}svg {{ background: #fff; }}\n{rules}</style><title>", 1)
    )


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(picture(Path(sys.argv[1])) + "\n", encoding="utf-8")
