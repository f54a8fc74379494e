"""Every cell of a step is somebody's, and nobody does more than it must."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zoquant.distributed.sharing import Cell, Sharing
from zoquant.optim.estimators import ESTIMATORS

SIZES = st.integers(1, 6)


def mesh_of(**axes: int) -> Any:
    """Return what `Sharing` reads of a mesh."""
    ranks = torch.arange(torch.Size(axes.values()).numel()).view(*axes.values())
    return SimpleNamespace(mesh=ranks, mesh_dim_names=tuple(axes))


@given(name=st.sampled_from(sorted(ESTIMATORS)), probes=SIZES, batches=SIZES, world=st.integers(1, 12))
def test_cells_are_dealt_out_evenly(name: str, probes: int, batches: int, world: int) -> None:
    points = ESTIMATORS[name]().points(probes)
    shares = [Sharing(world).cells(rank, points, batches) for rank in range(world)]
    cells = [cell for share in shares for cell in share]
    assert cells == [Cell(e, b) for e in range(len(points)) for b in range(batches)]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(
    name=st.sampled_from(sorted(ESTIMATORS)), probes=SIZES, batches=SIZES, data=SIZES, probe=SIZES, sign=st.booleans()
)
def test_a_mesh_gives_each_cell_to_one_rank(
    name: str, probes: int, batches: int, data: int, probe: int, sign: bool
) -> None:
    points = ESTIMATORS[name]().points(probes)
    axes = {"data": data, "probe": probe, "sign": 2} if sign else {"probe": probe, "data": data}
    sharing = Sharing(data * probe * (2 if sign else 1), mesh_of(**axes))
    if sign and any(point.sign == 0 for point in points):
        with pytest.raises(ValueError, match="axis sign"):
            sharing.cells(0, points, batches)
        return
    cells = [cell for rank in range(sharing.world) for cell in sharing.cells(rank, points, batches)]
    assert sorted(cells) == [Cell(e, b) for e in range(len(points)) for b in range(batches)]


def test_axes_mean_what_their_names_say() -> None:
    points = ESTIMATORS["two-point"]().points(2)  # plus and minus of probe 0, then of probe 1
    signs = Sharing(2, mesh_of(sign=2))
    assert [signs.cells(rank, points, 1) for rank in (0, 1)] == [[(0, 0), (2, 0)], [(1, 0), (3, 0)]]
    probes = Sharing(2, mesh_of(probe=2))
    assert [probes.cells(rank, points, 1) for rank in (0, 1)] == [[(0, 0), (1, 0)], [(2, 0), (3, 0)]]
    data = Sharing(2, mesh_of(data=2))
    assert [data.cells(rank, points, 2) for rank in (0, 1)] == [[(e, rank) for e in range(4)] for rank in (0, 1)]


def test_ranks_along_another_axis_are_one_worker() -> None:
    sharing = Sharing(4, mesh_of(data=2, tp=2))
    points = ESTIMATORS["two-point"]().points(1)
    assert sharing.cells(0, points, 2) == sharing.cells(1, points, 2) == [(0, 0), (1, 0)]
    assert sharing.cells(2, points, 2) == sharing.cells(3, points, 2) == [(0, 1), (1, 1)]
    assert sharing.parts == [(0,), (1,), (0,), (1,)]


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        (SimpleNamespace(mesh=torch.arange(4), mesh_dim_names=None), "axes have names"),
        (mesh_of(data=3), "all 4 ranks"),
        (mesh_of(sign=4), "expected 1 or 2"),
    ],
)
def test_other_meshes_are_refused(mesh: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sharing(4, mesh)
