"""Who evaluates what: a step is a table of losses, evaluations × micro-batches, and each cell has its ranks."""

from collections.abc import Sequence
from typing import NamedTuple

from torch.distributed.device_mesh import DeviceMesh

from zoquant.optim.estimators import Point

AXES = ("data", "probe", "sign")
"""The axes of a mesh along which ranks do different cells; ranks along any other axis do the same cells together."""


class Cell(NamedTuple):
    """One loss: number of the evaluation in the plan of the step, and number of the micro-batch."""

    evaluation: int
    batch: int


class Sharing:
    """Shares out the cells of a step.

    Without a mesh the cells, in the order of the plan, are dealt out in stretches that differ by one at most:
    sign-parallel for two ranks and one probe, probe-parallel for more probes, and products with data-parallel for
    micro-batches. With a mesh, the axis `data` deals out micro-batches, `probe` directions and `sign` the two sides of
    a direction.

    Args:
        world: number of ranks.
        mesh: a mesh of all ranks with some of the axes `data`, `probe` and `sign`; ranks along other axes, such as
            those of a tensor-parallel model, are one worker.

    Attributes:
        parts: for each rank, its place along the other axes: ranks of one part hold the same views.

    Raises:
        ValueError: the mesh has no named axes, or is not one of all ranks.
    """

    def __init__(self, world: int, mesh: DeviceMesh | None = None) -> None:
        self.world = world
        self._places: list[dict[str, int]] | None = None
        self._sizes: dict[str, int] = {}
        self.parts: list[tuple[int, ...]] = [()] * world
        if mesh is not None:
            self._place(mesh)

    def cells(self, rank: int, points: Sequence[Point], batches: int) -> list[Cell]:
        """Return the cells of a rank in order, of what an estimator evaluates in a step of so many micro-batches.

        Raises:
            ValueError: the mesh has an axis `sign`, but the estimator does not evaluate both sides of a direction.
        """
        if self._places is None:
            return [Cell(*divmod(number, batches)) for number in _dealt(len(points) * batches, self.world, rank)]
        self._check_signs(points)
        place, probes = self._places[rank], len({point.probe for point in points} - {None})
        own = set(_dealt(probes, self._size("probe"), place.get("probe", 0)))
        return [
            Cell(evaluation, batch)
            for evaluation, point in enumerate(points)
            if (point.probe or 0) in own and (self._size("sign") == 1 or (point.sign < 0) == place["sign"])
            for batch in _dealt(batches, self._size("data"), place.get("data", 0))
        ]

    def _place(self, mesh: DeviceMesh) -> None:
        names = mesh.mesh_dim_names
        if names is None or sorted(mesh.mesh.flatten().tolist()) != list(range(self.world)):
            raise ValueError(
                f"DistributedZO: mesh is {mesh}, expected one of all {self.world} ranks whose axes have names, some of "
                f"{', '.join(AXES)}. Take init_device_mesh('cpu', (2, 2), mesh_dim_names=('data', 'sign'))."
            )
        self._sizes = dict(zip(names, mesh.mesh.shape, strict=True))
        if self._size("sign") > 2:
            raise ValueError(f"DistributedZO: the axis sign has {self._size('sign')} ranks, expected 1 or 2.")
        found = {
            int(mesh.mesh[tuple(place)]): dict(zip(names, place, strict=True))
            for place in (mesh.mesh >= 0).nonzero().tolist()
        }
        self._places = [found[rank] for rank in range(self.world)]
        others = [name for name in names if name not in AXES]
        self.parts = [tuple(place[name] for name in others) for place in self._places]

    def _size(self, axis: str) -> int:
        return self._sizes.get(axis, 1)

    def _check_signs(self, points: Sequence[Point]) -> None:
        if self._size("sign") == 2 and any(point.sign == 0 for point in points):
            raise ValueError(
                "DistributedZO: the mesh has an axis sign, but the estimator does not evaluate both sides of each "
                "direction. Take TwoPoint() or GroupRelative(), or share out probes and data alone."
            )


def _dealt(count: int, takers: int, taker: int) -> range:
    """Return the stretch of `count` things that falls to one of the takers."""
    return range(count * taker // takers, count * (taker + 1) // takers)
