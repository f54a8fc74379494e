"""A backend that claims layers in order to say what to do instead of finding them unclaimed."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from zoquant.errors import UnsupportedLayoutError
from zoquant.protocol import ScaleView


class RefusedLayersBackend(ABC):
    """Refuses every layer that it claims."""

    name: str

    @abstractmethod
    def reason(self, cls: type) -> str:
        """Return why layers of a class are refused, and what to do instead."""

    def open(self, module: nn.Module) -> Sequence[ScaleView]:
        """Refuse the layer.

        Raises:
            UnsupportedLayoutError: always; it says why, and what to do instead.
        """
        raise UnsupportedLayoutError(self.reason(type(module)))

    def dequantize(self, module: nn.Module) -> Tensor:
        """Refuse the layer, as `open` does.

        Raises:
            UnsupportedLayoutError: always.
        """
        raise UnsupportedLayoutError(self.reason(type(module)))

    def sample_input(self, module: nn.Module) -> Tensor:
        """Refuse the layer, as `open` does.

        Raises:
            UnsupportedLayoutError: always.
        """
        raise UnsupportedLayoutError(self.reason(type(module)))
