"""The example package, installed with pip as a stranger's would be, passes its own tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = Path(__file__).parent.parent.parent / "examples" / "third_party_plugin"


@pytest.mark.slow
def test_the_example_package_installs_and_passes_its_tests(tmp_path: Path) -> None:
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*install, "--target", str(tmp_path), str(PLUGIN)], check=True)
    tests = tmp_path / "tests" / "test_nib3.py"
    tests.parent.mkdir()
    tests.write_bytes((PLUGIN / "test_nib3.py").read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(tests)], cwd=tests.parent,
        env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 passed" in done.stdout


def test_nothing_in_zoquant_knows_the_example() -> None:
    import zoquant

    sources = [file.read_text(encoding="utf-8") for file in Path(zoquant.__file__).parent.rglob("*.py")]
    assert sources
    assert not [text for text in sources if "nib3" in text]
