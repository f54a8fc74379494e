"""The command that shows what runs came to."""

from pathlib import Path
from typing import Annotated

import typer

from zoquant.cli.show import JSON, mebibytes, show_json, show_pairs


def report_command(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, finished or under way.")],
    out: Annotated[
        Path | None, typer.Option(help="The page; must not exist. Not given: report.html in the folder of the one run.")
    ] = None,
    json: JSON = False,
) -> None:
    """Write one HTML page about one run or several: curves, what moved where, samples, speed, settings.

    The page stands alone: it loads nothing, and runs no script.

    Example: `zoquant report run`, or `zoquant report run-a run-b --out both.html`
    """
    from zoquant.report import write_report

    path = write_report(runs, out)
    size = path.stat().st_size
    if json:
        show_json({"report": str(path), "bytes": size})
        return
    show_pairs("Report", {"page": path, "size": mebibytes(size)})
