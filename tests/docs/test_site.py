"""The site builds, and a warning, such as of a link that leads nowhere, fails it."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PARTS = ("mkdocs", "material", "mkdocstrings")


@pytest.mark.slow
@pytest.mark.skipif(not all(map(find_spec, PARTS)), reason="needs requirements/site.txt: run `make site`")
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for page in ("index.html", "reference/api.html", "project/contributing.html"):
        assert (tmp_path / "site" / page).exists()
