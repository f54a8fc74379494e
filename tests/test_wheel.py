"""The built wheel works outside of the repository, its data included."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROGRAM = """
import pathlib, zoquant
from zoquant.cli.demo import reviews
home = pathlib.Path(zoquant.__file__).parent
assert home.parent == pathlib.Path.cwd() / "unpacked", home
assert reviews("train").is_relative_to(home) and reviews("test").exists()
assert "gguf" in zoquant.list_formats() and len(zoquant.list_backends()) >= 3
assert (home / "py.typed").exists()
sources = {path.name for path in (home / "kernels").iterdir() if path.suffix in (".cpp", ".h")}
assert sources == {"decode.cpp", "layouts.h", "matmul.cpp", "noise.cpp"}
"""


@pytest.mark.slow
def test_the_wheel_works_elsewhere(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", str(tmp_path)]
    subprocess.run([*build, str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("zoquant-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "unpacked")
    assert not [name for name in names if name.startswith("tests/")]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "unpacked")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
