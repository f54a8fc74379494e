"""zoquant: fine-tune quantized models with forward passes alone; the integer codes never change."""

from importlib.metadata import PackageNotFoundError, version

from zoquant import errors, testing
from zoquant.backends import plugins
from zoquant.checkpoint.exporting import export
from zoquant.checkpoint.loading import load
from zoquant.kernels.noise.definition import Noise
from zoquant.optim import estimators, presets
from zoquant.optim.backward.descent import GradientDescent
from zoquant.optim.calibration import Calibration
from zoquant.optim.measuring import StepResult
from zoquant.optim.optimizer import ZOSGD
from zoquant.optim.trunk import Trunk
from zoquant.protocol import Backend, Format, ScaleView, Span, Summary
from zoquant.record import rules
from zoquant.record.delta import Delta, load_delta, save_delta
from zoquant.record.replay import replay
from zoquant.record.trajectory import Trajectory
from zoquant.registry import declare, list_backends, list_formats, register, unregister
from zoquant.views.attach import attach
from zoquant.views.gradients import Gradients
from zoquant.views.model_views import BoundView, Views
from zoquant.views.packed_backend import PackedBackend
from zoquant.views.tensor_views import BytesView, MemberView, TensorView

try:
    __version__ = version("zoquant")
except PackageNotFoundError:  # a checkout that is on the path, not installed
    __version__ = "0+checkout"

declare(f"zoquant {__version__}", backends=plugins.targets(), formats=plugins.FORMATS)

__all__ = [
    "ZOSGD",
    "Backend",
    "BoundView",
    "BytesView",
    "Calibration",
    "Delta",
    "Format",
    "GradientDescent",
    "Gradients",
    "MemberView",
    "Noise",
    "PackedBackend",
    "ScaleView",
    "Span",
    "StepResult",
    "Summary",
    "TensorView",
    "Trajectory",
    "Trunk",
    "Views",
    "attach",
    "errors",
    "estimators",
    "export",
    "list_backends",
    "list_formats",
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
