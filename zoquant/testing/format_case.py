"""What the checks of a format run on: a checkpoint, its index, and a model on native layers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from zoquant.checkpoint.stored_files import files_of
from zoquant.protocol import PLAIN_ROLES, ROLES, Format, Role, Span
from zoquant.record.delta import save_delta
from zoquant.testing.case import attached
from zoquant.views.model_views import Views

Reference = Callable[[Path], Mapping[str, Tensor]]


@dataclass(frozen=True)
class FormatCase:
    """A format under test.

    Attributes:
        path: a checkpoint of that format.
        format: the format.
        compute_dtype: dtype of the matrix products.
        steps: training steps of the check that nothing drifts, for each layer.
        reference: returns weights as somebody else reads them, by path of layer, float32 `[out_features, in_features]`.
    """

    path: Path
    format: Format
    compute_dtype: torch.dtype
    steps: int
    reference: Reference | None = None

    def open(self, path: Path | None = None) -> tuple[nn.Module, Views]:
        """Return a fresh native model of the checkpoint, or of another, and all views of what a checkpoint holds."""
        place = path or self.path
        model, _ = self.format.open_native(place, compute_dtype=self.compute_dtype, device=torch.device("cpu"))
        return model, attached(model, roles=self.roles())

    def roles(self) -> list[Role]:
        """Return the roles of views of the checkpoint.

        Plain parameters are views if the index names any of their role: a folder with an adapter has none of its base.
        """
        named = {span.role for span in self.format.index(self.path).values()}
        return [role for role in ROLES if role not in PLAIN_ROLES or role in named]

    def moved(self, delta: Path) -> Views:
        """Return the views of a fresh model, moved so far that some scales stop at zero; write their delta to a file.

        The last view stays at its base, as views do that a training leaves out.
        """
        _, views = self.open()
        views.add(3, 0.6, "gaussian")
        last = views.keys[-1]
        views.set_delta({last: torch.zeros_like(views.delta(last))})
        save_delta(delta, views)
        return views

    def contents(self, path: Path | None = None) -> dict[str, bytes]:
        """Return the bytes of every file of the checkpoint, or of an exported one, by name."""
        return {name: file.read_bytes() for name, file in files_of(path or self.path, self.format).items()}

    def copy_to(self, folder: Path) -> tuple[Path, dict[str, Path]]:
        """Copy the checkpoint into an empty folder; return its path there, and the copies by name."""
        place = folder / self.path.name
        parent = place if self.path.is_dir() else folder
        copies = {name: parent / name for name in self.contents()}
        for name, data in self.contents().items():
            copies[name].parent.mkdir(parents=True, exist_ok=True)
            copies[name].write_bytes(data)
        return place, copies


def end_of(span: Span) -> int:
    """Return the number of the first byte after the last value of a key."""
    steps = zip(span.shape, span.strides, strict=True)
    return span.offset + sum((length - 1) * stride for length, stride in steps) + span.dtype.itemsize


def span_bytes(size: int, span: Span) -> torch.Tensor:
    """Return where the bytes of a key lie in a file of `size` bytes, as a mask bool `[size]`."""
    mask = torch.zeros(size, dtype=torch.bool)
    shape = (*span.shape, span.dtype.itemsize)
    mask.as_strided(shape, (*span.strides, 1), span.offset).fill_(True)
    return mask
