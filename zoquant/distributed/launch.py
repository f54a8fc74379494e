"""A whole run under torchrun: who it is, what rank 0 alone does, and how a restarted run goes on."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from zoquant.distributed.exchange import broadcast
from zoquant.distributed.optimizer import DistributedZO
from zoquant.optim.optimizer import ZOSGD

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_AUDIT_EVERY = 100
_FOREVER = timedelta(days=365)


def launched() -> bool:
    """Whether this process is one of those that torchrun, or another launcher of torch.distributed, has started."""
    return all(name in os.environ for name in _VARIABLES)


def is_first() -> bool:
    """Whether this is rank 0, or the only process: the one that writes files and prints."""
    return not launched() or int(os.environ["RANK"]) == 0


@contextmanager
def process_group() -> Iterator[None]:
    """Join the other processes of the launch for the length of a with block; do nothing where there is no launch.

    On a machine with GPUs, `"cuda"` means the one of this process's local rank from then on.
    """
    if not launched() or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store, rank, size = next(rendezvous("env://"))
    dist.init_process_group(backend, store=_fresh(store), rank=rank, world_size=size)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _fresh(store: Store) -> Store:
    """Return the part of a store that processes before a restart have not written to.

    torchrun lends its own store to the workers, and after a restart the same one, in which the addresses of those that
    died still stand (pytorch issue 135712). How often it restarted is known to all where there is one torchrun.
    """
    if os.environ.get("GROUP_WORLD_SIZE") != "1":
        return store
    return PrefixStore(f"restart/{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)


def stepper(optimizer: ZOSGD) -> ZOSGD | DistributedZO:
    """Return what does the steps of a run: the optimizer, or in a process group all ranks together."""
    return DistributedZO(optimizer, audit_every=_AUDIT_EVERY) if dist.is_initialized() else optimizer


def from_first(value: Any) -> Any:
    """Return rank 0's value on all ranks: anything JSON can hold."""
    return broadcast(value) if dist.is_initialized() else value


def waiting() -> Callable[[], None]:
    """Return what lets the other ranks wait until rank 0 comes by, however long that takes. All ranks call it at once.

    The process group gives up after its time-out, of half an hour; an evaluation may take longer. A rank that died is
    noticed all the same, since its connection closes.
    """
    if not dist.is_initialized():
        return lambda: None
    group = dist.new_group(backend="gloo", timeout=_FOREVER)

    def wait() -> None:
        dist.broadcast(torch.zeros(1), 0, group)

    return wait


def folder_of_rank(out: str | Path) -> Path:
    """Return where this rank writes: rank 0 to `out`, the others to a temporary folder that goes when they end."""
    if is_first():
        return Path(out)
    temporary = Path(tempfile.mkdtemp(prefix="zoquant-rank-"))
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    return temporary / Path(out).name


def goes_on(resume: bool, folder: Path) -> bool:
    """Return whether this rank reads a run to go on with from its folder, as the caller asked for with `resume`.

    Under a launcher, rank 0 does so if there is one and it was told to resume, or torchrun has restarted it. The other
    ranks get the steps from rank 0.
    """
    if not launched():
        return resume
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    return is_first() and (resume or restarted) and folder.exists()
