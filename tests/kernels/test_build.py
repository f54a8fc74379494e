"""Compiled code is found, refused or left out, and never a reason to fail."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from zoquant.kernels import build

FORCED = """
import torch
from zoquant import kernels
from zoquant.backends.gguf.blocks import CODECS
from zoquant.errors import UnsupportedLayoutError
from zoquant.kernels.build import kernel
from zoquant.kernels.noise.source import NoiseSource
try:
    raise SystemExit(f"{kernel('decode_words')} is there")
except UnsupportedLayoutError as error:
    assert "decode_words: no compiled kernel here (torch: switched off" in str(error)
assert kernels.library() is None and CODECS["Q4_1"].decode_rows is None and CODECS["Q4_1"].multiply_rows is None
z = NoiseSource(["a"], [128], "rademacher", torch.device("cpu")).draw(1, 0, torch.empty(128))
assert z.abs().eq(1).all()
print(kernels.status())
"""


SMALL = "".join(f'extern "C" int {name}() {{ return 0; }}\n' for name in (*build._FUNCTIONS, *build._QUESTIONS))
BUILD_SMALL = """
import sys
from pathlib import Path
from zoquant.kernels import build
build.SOURCES = (Path(sys.argv[1]),)
print(build.status())
"""


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """An empty cache folder, nothing remembered, and a source that compiles in no time."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "small.cpp").write_text(SMALL, encoding="utf-8")
    monkeypatch.setattr(build, "SOURCES", (tmp_path / "small.cpp",))
    monkeypatch.delenv(build.SWITCH, raising=False)
    build._found.cache_clear()
    yield
    build._found.cache_clear()


def built() -> Path:
    """Return the library as it would be found by a new process."""
    build._found.cache_clear()
    if build.library() is None:
        pytest.skip(build.status())
    return Path(build.status().removeprefix("compiled: "))


def test_the_fallback_is_whole() -> None:
    environment = {**os.environ, build.SWITCH: "0"}
    done = subprocess.run([sys.executable, "-c", FORCED], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "torch: switched off by ZOQUANT_KERNELS=0"), done.stderr


def test_a_library_is_built_once() -> None:
    first = built()
    stamp = first.stat().st_mtime_ns
    assert built() == first
    assert first.stat().st_mtime_ns == stamp
    assert [path.name for path in build.cache_folder().iterdir()] == [first.name]
    assert first.stat().st_mode & 0o077 == 0


def test_a_damaged_library_is_built_again() -> None:
    path = built()
    half = path.with_suffix(".half")  # not in place: this process has the library in its memory
    half.write_bytes(path.read_bytes()[:999])
    half.chmod(0o700)
    os.replace(half, path)
    assert not build._sound(path)
    assert built().stat().st_size > 999


def test_other_sources_never_meet_an_old_library(monkeypatch: pytest.MonkeyPatch) -> None:
    first = built()
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-DOTHER"))
    assert built() != first


def test_what_others_may_write_is_not_loaded() -> None:
    path = built()
    path.chmod(0o777)
    assert not build._sound(path)
    build.cache_folder().chmod(0o777)
    build._found.cache_clear()
    assert build.library() is None
    assert build.status() == f"torch: {build.cache_folder()} belongs to somebody else, or others may write to it"


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    path = built()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    target = tmp_path / "elsewhere" / path.name
    shutil.move(path, target)
    path.symlink_to(target)
    assert not build._sound(path)


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "COMPILERS", ("no-such-compiler",))
    assert build.library() is None
    assert build.status() == "torch: no C++ compiler found"


def test_a_compiler_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "broken.cpp"
    broken.write_text("#error not today\n", encoding="utf-8")
    monkeypatch.setattr(build, "SOURCES", (broken,))
    assert build.library() is None
    assert build.status().startswith("torch: ")
    assert list(build.cache_folder().iterdir()) == []


def test_a_compiler_that_speaks_no_unicode(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_bytes(b"#!/bin/sh\nprintf 'error: nicht m\\366glich\\n' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setattr(build, "COMPILERS", (str(compiler),))
    assert build.library() is None
    assert "failed: error: nicht m" in build.status()


def test_a_folder_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert build.library() is None
    assert build.status().startswith("torch: cannot use the cache folder: ")


def test_two_processes_build_at_once(tmp_path: Path) -> None:
    built()
    shutil.rmtree(build.cache_folder())
    command = [sys.executable, "-c", BUILD_SMALL, str(tmp_path / "small.cpp")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[0].strip() for process in both]
    assert all(line.startswith("compiled: ") for line in said)
    assert {Path(line.removeprefix("compiled: ")).parent for line in said} == {build.cache_folder()}
