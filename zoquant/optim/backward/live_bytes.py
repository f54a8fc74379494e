"""How many bytes of tensors are alive at a time: what a forward or a backward asks of memory."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors made within a `with`, for as long as they live. Those made before do not count.

    What an operation takes for itself while it runs is not seen.

    Attributes:
        alive: bytes of the tensors that are alive.
        trace: what `alive` was after each operation.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive: int = 0
        self.trace: list[int] = []
        self._known: Any = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        for tensor in _tensors((args, kwargs)):
            self._known.setdefault(tensor.untyped_storage(), 0)
        made = func(*args, **(kwargs or {}))
        for tensor in _tensors(made):
            self._count(tensor)
        self.trace.append(self.alive)
        return made

    @property
    def peak(self) -> int:
        """The most that `alive` has been."""
        return max(self.trace, default=0)

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self._known:
            size = self._known[storage] = storage.nbytes()
            self.alive += size
            weakref.finalize(storage, self._free, size).atexit = False

    def _free(self, size: int) -> None:
        self.alive -= size


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
