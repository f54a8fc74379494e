"""What is built works outside of the repository, its data included, and lacks nothing."""

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PROGRAM = """
import pathlib, zoquant
from zoquant.cli.demo import reviews
home = pathlib.Path(zoquant.__file__).parent
assert home.parent == pathlib.Path.cwd() / "unpacked", home
assert reviews("train").is_relative_to(home) and reviews("test").exists()
assert "gguf" in zoquant.list_formats() and len(zoquant.list_backends()) >= 3
"""
DATA = {".cpp", ".h", ".html", ".css", ".jsonl", ".typed"}
"""How names end of files of the package that are no Python."""


def built(kind: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (made,) = folder.glob("zoquant-*")
    return made


def test_the_wheel_works_elsewhere(tmp_path: Path) -> None:
    with zipfile.ZipFile(built("wheel", tmp_path)) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "unpacked")
    package = {
        path for path in (ROOT / "zoquant").rglob("*") if path.suffix in {".py", *DATA} or path.name == "py.typed"
    }
    assert {str(path.relative_to(ROOT)) for path in package} <= names
    assert {name.partition("/")[0] for name in names} == {"zoquant", f"zoquant-{PROJECT['version']}.dist-info"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "unpacked")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not (ROOT / ".git").exists() or shutil.which("git") is None, reason="not a clone")
def test_the_source_holds_every_tracked_file(tmp_path: Path) -> None:
    with tarfile.open(built("sdist", tmp_path)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    assert set(tracked) - names == set()


def test_all_is_every_extra() -> None:
    extras = dict(PROJECT["optional-dependencies"])
    (every,) = extras.pop("all")
    extras.pop("dev")
    assert re.fullmatch(r"zoquant\[(.+)\]", every)[1].split(",") == list(extras)  # type: ignore[index]


def test_the_versions_of_python_are_those_that_are_tested() -> None:
    said = [each.rpartition(" ")[2] for each in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", each)]
    assert f">={said[0]}" == PROJECT["requires-python"]
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))["jobs"]
    assert set(jobs["tests"]["strategy"]["matrix"]["python"]) == set(said)
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    targets = set(re.findall(r"^([\w.-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert ".ci/run" in commands
    assert {word for command in commands if command.startswith("make ") for word in command.split()[1:]} <= targets
