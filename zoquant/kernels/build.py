"""The compiled kernels: built once with the system's C++ compiler, kept in the user's cache folder, loaded by ctypes.

What stands in the cache is code, so nothing is loaded from a folder or file that somebody else owns or may write. The
name of a library holds the hash of its source, its flags and the processor, and the hash of its own bytes: a library
of other sources is never found, and a damaged one is built again.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from zoquant.errors import UnsupportedLayoutError

SOURCES = tuple(sorted(Path(__file__).parent.rglob("*.cpp")))
HEADERS = tuple(sorted(Path(__file__).parent.rglob("*.h")))
FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=off", "-fopenmp", "-shared", "-fPIC")
COMPILERS = ("c++", "g++", "clang++")
SWITCH = "ZOQUANT_KERNELS"
"""Environment variable: `0` switches the compiled kernels off."""

_FUNCTIONS = (
    "zoquant_decode", "zoquant_decode_words", "zoquant_noise", "zoquant_accumulate", "zoquant_write", "zoquant_matmul",
    "zoquant_ratios", "zoquant_compose", "zoquant_contract",
)  # fmt: skip
_QUESTIONS = ("zoquant_matmul_ready", "zoquant_write_ready")
_TIMEOUT = 300


class _NotCompiledError(Exception):
    """Why torch computes."""


@cache
def _found() -> tuple[ctypes.CDLL | None, str]:
    try:
        path = _library_file()
        return _loaded(path), f"compiled: {path}"
    except _NotCompiledError as reason:
        return None, f"torch: {reason}"


def library() -> ctypes.CDLL | None:
    """Return the compiled kernels; None where torch computes. The first call may compile, which takes seconds."""
    return _found()[0]


@cache
def kernel(name: str, *arguments: Any) -> Callable[..., None]:
    """Return the compiled function `zoquant_<name>`: these ctypes go into it, and torch's threads by themselves.

    Raises:
        UnsupportedLayoutError: nothing is compiled here.
    """
    compiled = library()
    if compiled is None:
        raise UnsupportedLayoutError(f"{name}: no compiled kernel here ({status()}), so torch has to compute it.")
    run = ctypes.CFUNCTYPE(None, *arguments, ctypes.c_int32)((f"zoquant_{name}", compiled))
    return lambda *given: run(*given, torch.get_num_threads())


def status() -> str:
    """Return who computes, and where it is or why it is not: `"compiled: <file>"` or `"torch: <reason>"`."""
    return _found()[1]


def cache_folder() -> Path:
    """Return where compiled kernels are kept: `$XDG_CACHE_HOME` or `~/.cache`, and `zoquant/kernels` in it."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home) / "zoquant" / "kernels"


def _library_file() -> Path:
    """Return the library, built if need be."""
    if os.environ.get(SWITCH) == "0":
        raise _NotCompiledError(f"switched off by {SWITCH}=0")
    if sys.platform == "win32":
        raise _NotCompiledError("no compiled kernels on Windows")
    folder, key = cache_folder(), _key()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _own(folder, stat.S_ISDIR):
            raise _NotCompiledError(f"{folder} belongs to somebody else, or others may write to it")
        kept = next((path for path in sorted(folder.glob(f"{key}-*.so")) if _sound(path)), None)
        return kept or _build(folder, key)
    except OSError as error:
        raise _NotCompiledError(f"cannot use the cache folder: {error}") from error


def _key() -> str:
    parts = [*(path.read_bytes() for path in (*SOURCES, *HEADERS)), " ".join(FLAGS).encode(), _processor().encode()]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:24]


def _processor() -> str:
    """Return what `-march=native` depends on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    names = ("vendor_id", "cpu family", "model\t", "flags", "Features", "CPU part")
    found = [next((line for line in lines if line.startswith(name)), "") for name in names]
    return "\n".join([platform.system(), platform.machine(), platform.processor(), *found])


def _own(path: Path, kind: Callable[[int], bool]) -> bool:
    """Whether a path is what it should be, and nobody but this user can have written it."""
    found = path.lstat()
    return kind(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _sound(path: Path) -> bool:
    """Whether a library is this user's, and has the bytes that its name says."""
    return _own(path, stat.S_ISREG) and path.stem.rpartition("-")[2] == _digest(path)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:24]


def _build(folder: Path, key: str) -> Path:
    """Compile into a file of this process alone and move it into place: two processes may build at once."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise _NotCompiledError("no C++ compiler found")
    with tempfile.TemporaryDirectory(dir=folder) as room:
        new = Path(room) / "kernels.so"
        _compile([compiler, *FLAGS, *map(str, SOURCES), "-o", str(new)])
        new.chmod(0o700)
        path = folder / f"{key}-{_digest(new)}.so"
        os.replace(new, path)
    return path


def _compile(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=_TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise _NotCompiledError(f"{command[0]} took longer than {_TIMEOUT} s") from error
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        raise _NotCompiledError(f"{command[0]} failed: {errors[0] if errors else f'status {done.returncode}'}")


def _loaded(path: Path) -> ctypes.CDLL:
    try:
        loaded = ctypes.CDLL(str(path))
        for name in _FUNCTIONS:
            getattr(loaded, name)
        for name in _QUESTIONS:
            getattr(loaded, name).restype = ctypes.c_int32
    except (OSError, AttributeError) as error:
        raise _NotCompiledError(f"cannot load {path}: {error}") from error
    return loaded
