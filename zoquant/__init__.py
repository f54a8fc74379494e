"""zoquant: fine-tune quantized models with forward passes alone; the integer codes never change."""

from importlib.metadata import version

import zoquant.backends  # noqa: F401  now, so that its first import cannot replace the function of that name
from zoquant import errors, testing
from zoquant.attach import BoundView, Views, attach
from zoquant.delta import load_delta, save_delta
from zoquant.export import export
from zoquant.load import load
from zoquant.optim import ZOSGD, StepResult
from zoquant.protocol import Backend, Format, ScaleView, Span, Summary
from zoquant.registry import backends, formats, register, unregister
from zoquant.trajectory import Trajectory, replay
from zoquant.views import BytesView, MemberView, TensorView

__version__ = version("zoquant")
__all__ = [
    "ZOSGD",
    "Backend",
    "BoundView",
    "BytesView",
    "Format",
    "MemberView",
    "ScaleView",
    "Span",
    "StepResult",
    "Summary",
    "TensorView",
    "Trajectory",
    "Views",
    "attach",
    "backends",
    "errors",
    "export",
    "formats",
    "load",
    "load_delta",
    "register",
    "replay",
    "save_delta",
    "testing",
    "unregister",
]
