"""zoquant: fine-tune quantized models with forward passes alone; the integer codes never change."""

from importlib.metadata import PackageNotFoundError, version

import zoquant.backends  # noqa: F401  now, so that its first import cannot replace the function of that name
from zoquant import errors, estimators, presets, rules, testing
from zoquant.attach import attach
from zoquant.batched import BatchedZO
from zoquant.bound import BoundView, Views
from zoquant.calibration import Calibration
from zoquant.delta import Delta, load_delta, save_delta
from zoquant.experts import ReachedExperts
from zoquant.export import export
from zoquant.joint import joint_step
from zoquant.load import load
from zoquant.noise import Noise
from zoquant.optim import ZOSGD, StepResult
from zoquant.paired import PairedZO
from zoquant.protocol import Backend, Format, ScaleView, Span, Summary
from zoquant.registry import backends, formats, register, unregister
from zoquant.trajectory import Trajectory, replay
from zoquant.trunk import Trunk
from zoquant.views import BytesView, MemberView, TensorView

try:
    __version__ = version("zoquant")
except PackageNotFoundError:  # a checkout that is on the path, not installed
    __version__ = "0+checkout"

__all__ = [
    "ZOSGD",
    "Backend",
    "BatchedZO",
    "BoundView",
    "BytesView",
    "Calibration",
    "Delta",
    "Format",
    "MemberView",
    "Noise",
    "PairedZO",
    "ReachedExperts",
    "ScaleView",
    "Span",
    "StepResult",
    "Summary",
    "TensorView",
    "Trajectory",
    "Trunk",
    "Views",
    "attach",
    "backends",
    "errors",
    "estimators",
    "export",
    "formats",
    "joint_step",
    "load",
    "load_delta",
    "presets",
    "register",
    "replay",
    "rules",
    "save_delta",
    "testing",
    "unregister",
]
