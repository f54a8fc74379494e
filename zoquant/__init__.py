"""zoquant: fine-tune quantized models with forward passes alone; the integer codes never change.

A public name is imported when it is first used, and torch with it: the command line starts without.
"""

from importlib.metadata import EntryPoint, PackageNotFoundError, version
from typing import TYPE_CHECKING

from zoquant import errors
from zoquant.backends import plugins
from zoquant.registry import declare, list_backends, list_formats, register, unregister

if TYPE_CHECKING:
    from zoquant import testing
    from zoquant.checkpoint.exporting import export
    from zoquant.checkpoint.loading import load
    from zoquant.integrations.one_call import Run, evaluate, finetune
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

_PLACES = {
    "checkpoint.exporting": "export",
    "checkpoint.loading": "load",
    "integrations.one_call": "Run evaluate finetune",
    "kernels.noise.definition": "Noise",
    "optim.backward.descent": "GradientDescent",
    "optim.calibration": "Calibration",
    "optim.measuring": "StepResult",
    "optim.optimizer": "ZOSGD",
    "optim.trunk": "Trunk",
    "protocol": "Backend Format ScaleView Span Summary",
    "record.delta": "Delta load_delta save_delta",
    "record.replay": "replay",
    "record.trajectory": "Trajectory",
    "views.attach": "attach",
    "views.gradients": "Gradients",
    "views.model_views": "BoundView Views",
    "views.packed_backend": "PackedBackend",
    "views.tensor_views": "BytesView MemberView TensorView",
}
"""Where the names that are imported at their first use are defined."""

_TARGETS = {name: f"zoquant.{place}:{name}" for place, names in _PLACES.items() for name in names.split()}
_TARGETS |= {"estimators": "zoquant.optim.estimators", "presets": "zoquant.optim.presets"}
_TARGETS |= {"rules": "zoquant.record.rules", "testing": "zoquant.testing"}

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
    "Run",
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
    "evaluate",
    "export",
    "finetune",
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

if not TYPE_CHECKING:  # type checkers and editors see the imports above

    def __getattr__(name):
        """Import a public name, once."""
        if name not in _TARGETS:
            raise AttributeError(f"module 'zoquant' has no attribute {name!r}")
        return globals().setdefault(name, EntryPoint(name, _TARGETS[name], "").load())

    def __dir__():
        """Return all names, those that are not imported yet among them."""
        return sorted({*globals(), *__all__})
