"""What torch is asked to do, and what it allocates for it."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operators, and the bytes that they allocate: outputs whose storage none of the inputs has."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0
        self.allocated = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.count += 1
        held = {t.untyped_storage().data_ptr() for t in tensors((args, dict(kwargs or {})))}
        found = func(*args, **(kwargs or {}))
        self.allocated += sum(t.nbytes for t in tensors(found) if t.untyped_storage().data_ptr() not in held)
        return found


def tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        yield from tensors(list(tree.values()))
    elif isinstance(tree, list | tuple):
        for part in tree:
            yield from tensors(part)
