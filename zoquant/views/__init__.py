"""The continuous values of a live model as one vector: found, checked, read, written.

How a step moves them is no matter of this wing: that is `optim`. Begin with `attach`; its function is `zoquant.attach`.
"""

from zoquant.views.model_views import AttachedLayer, BoundView, Views
from zoquant.views.streamed_buffer import as_called
from zoquant.views.tensor_views import BytesView, MemberView, TensorView

__all__ = ["AttachedLayer", "BoundView", "BytesView", "MemberView", "TensorView", "Views", "as_called"]
