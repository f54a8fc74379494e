"""Triton kernels are launched on the device of their tensors. Shown without a GPU, and without triton."""

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import zoquant.kernels
from zoquant.kernels.triton_launch import launch

FOLDER = Path(zoquant.kernels.__file__).parent
CURRENT: list[torch.device] = []


class Kernel:
    """Notes the current device of its launches, and what they were given."""

    def __init__(self) -> None:
        self.launches: list[tuple[Any, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *given, **settings: self.launches.append((grid, CURRENT[-1:], given, settings))


@contextmanager
def made_current(device: torch.device) -> Iterator[None]:
    CURRENT.append(device)
    yield
    CURRENT.pop()


def test_the_device_of_the_tensors_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device", made_current)
    second, kernel = torch.device("cuda", 1), Kernel()
    launch(kernel, (3,), second, 5, 6, BLOCK=7)
    launch(kernel, (3,), torch.device("cpu"), 5)
    assert kernel.launches == [((3,), [second], (5, 6), {"BLOCK": 7}), ((3,), [], (5,), {})]


@pytest.mark.parametrize("file", sorted(str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*triton*.py")))
def test_no_kernel_is_launched_elsewhere(file: str) -> None:
    calls = [node for node in ast.walk(ast.parse((FOLDER / file).read_text())) if isinstance(node, ast.Call)]
    assert any(isinstance(call.func, ast.Subscript) for call in calls) == (file == "triton_launch.py")
