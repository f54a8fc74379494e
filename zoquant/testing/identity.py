"""Laws 6 and 8: what a key names, and what a delta belongs to."""

from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor, nn

from zoquant.errors import BaseMismatchError
from zoquant.record.delta import load_delta, save_delta
from zoquant.testing.case import BackendCase, attached, opened, other_values, train, values_of
from zoquant.testing.results import ConformanceError
from zoquant.testing.tensors import same_bits


def check_noise_is_pure(case: BackendCase) -> None:
    """A probe writes the same values whatever the order of the layers, and whichever subset is attached."""
    forth, keys = _probe(case, ("a", "b"))
    back, _ = _probe(case, ("b", "a"))
    alone, _ = _probe(case, ("a", "b"), include=keys[0])
    if forth.keys() != back.keys() or set(alone) != {keys[0]}:
        raise ConformanceError(
            f"{keys[0]}: the keys depend on the order of the layers or on what is attached: {sorted(forth)}, "
            f"{sorted(back)} and {sorted(alone)}. Name a view by what it is, not by a count."
        )
    for how, got in (("in another order", back), ("alone", alone)):
        for key, values in got.items():
            if not same_bits(values, forth[key]):
                raise ConformanceError(f"{key}: a probe wrote other values when the layers were attached {how}.")


def check_delta_meets_only_its_base(case: BackendCase) -> None:
    """A delta is refused by another base, with the key that differs, and nothing changes."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "delta.safetensors")
        model = case.model()
        views = attached(model)
        train(model, views)
        save_delta(path, views)
        other = case.model()
        first = opened(other)[0].views[0]
        first.write(other_values(first.read().clone()))
        strangers = attached(other)
        before = values_of(strangers)
        try:
            load_delta(path, strangers)
        except BaseMismatchError as error:
            if strangers.keys[0] not in str(error):
                raise ConformanceError(f"the refusal does not name {strangers.keys[0]}: {error}") from error
        else:
            raise ConformanceError(
                f"{strangers.keys[0]}: a delta was accepted by another base. open() must read what the layer holds."
            )
        if any(not same_bits(values, before[key]) for key, values in values_of(strangers).items()):
            raise ConformanceError(f"{strangers.keys[0]}: a refused delta changed values.")


def _probe(
    case: BackendCase, order: tuple[str, ...], include: str | None = None
) -> tuple[dict[str, Tensor], list[str]]:
    model = nn.ModuleDict({name: case.make_module() for name in order})
    views = attached(model, include)
    views.write(seed=5, eps=3e-2)
    return values_of(views), list(views.keys)
