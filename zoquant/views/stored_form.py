"""Plain tensors that a model holds in another form than their file: wider, in another order of rows, less a number.

What is trained is what the file holds, since that is what has to fit its dtype and what export writes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoquant.protocol import Role
from zoquant.views.tensor_views import TensorView, check_value, clamp_to, store


@dataclass(frozen=True, eq=False)
class StoredForm:
    """How a file holds a tensor of a model.

    Attributes:
        dtype: the dtype of its values in the file.
        rows: for every row of the tensor its row in the file, int64 `[rows]`; None where they agree.
        added: what the file adds to every value.
        values: the file's own values, float32, where something is added: the sum of what the model holds would round.
    """

    dtype: torch.dtype
    rows: Tensor | None = None
    added: float = 0.0
    values: Tensor | None = None

    def held(self, values: Tensor) -> Tensor:
        """Return values of the file as the model holds them."""
        less = values - self.added if self.added else values
        return less if self.rows is None else less[self.rows.to(less.device)]

    def stored(self, held: Tensor) -> Tensor:
        """Return what the model holds as values of the file, float32: its own, unless somebody else wrote since."""
        values = self.in_order(held.detach()).to(torch.float32, copy=True)
        if self.values is None:
            return values + self.added if self.added else values
        known = self.values.to(values.device)
        return torch.where(known - self.added == values, known, values + self.added)

    def in_order(self, held: Tensor) -> Tensor:
        """Return numbers of the rows of the tensor in the order of the rows of the file."""
        return held if self.rows is None else torch.empty_like(held).index_copy_(0, self.rows.to(held.device), held)


def keep_form(module: nn.Module, name: str, form: StoredForm) -> None:
    """Remember how the file holds a parameter or a buffer of a module; it stays known when the module is moved."""
    forms: dict[str, StoredForm] = module.__dict__.setdefault("_stored_forms", {})
    forms[name] = form


def plain_view(module: nn.Module, name: str, tensor: Tensor, role: Role = "dense") -> TensorView:
    """Return a view of a plain tensor of a module, in the form of its file."""
    form: StoredForm | None = module.__dict__.get("_stored_forms", {}).get(name)
    if form is None:
        return TensorView(name, role, tensor)
    if form.rows is None and not form.added:
        return TensorView(name, role, tensor, dtype=form.dtype)
    return FormView(name, role, tensor, form)


class FormView(TensorView):
    """A view of a tensor by the values and the order of its file.

    Args:
        name: local name of the view.
        role: what the values are to the layer.
        tensor: the storage that the forward reads.
        form: how the file holds it.
    """

    def __init__(self, name: str, role: Role, tensor: Tensor, form: StoredForm) -> None:
        super().__init__(name, role, tensor, dtype=form.dtype)
        self._form = form
        self.live = None

    def read(self) -> Tensor:
        """Return the file's values, a float32 copy."""
        return self._form.stored(self._tensor)

    def gradient(self, held: Tensor) -> Tensor:
        """Return a gradient by what the model holds as one by the file's values."""
        return self._form.in_order(held)

    def write(self, value: Tensor) -> None:
        """Store `value`, cast to the dtype of the file, as the model holds it.

        Raises:
            ShapeError, ValueRangeError: see `check_value`.
        """
        check_value(self.name, self.shape, value)
        fitting = clamp_to(self.dtype, value).to(self.dtype).float()
        if self._form.values is not None:
            store(self._form.values, fitting)
        store(self._tensor, self._form.held(fitting))
