"""A rank in step with another one that it reaches over a network.

python -m tests.distributed.remote_rank rank host port out
"""

import sys
import time
from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist

from tests.distributed.processes import closures, held
from tests.distributed.test_asynchronous import slowly
from tests.distributed.test_distributed import optimizer_of
from zoquant.distributed import DistributedZO

STEPS = 20


def run(rank: int, host: str, port: str, out: str) -> None:
    """Do the steps, say each, and write what this rank holds and how long the longest step took."""
    torch.set_num_threads(1)
    where = f"tcp://{host}:{port}"
    dist.init_process_group("gloo", init_method=where, rank=rank, world_size=2, timeout=timedelta(seconds=120))
    model, optimizer = optimizer_of()
    stepper, longest = DistributedZO(optimizer), 0.0
    for step in range(STEPS):
        start = time.perf_counter()
        stepper.step(partial(slowly, 0.02, closures(model, step, 1)[0]))  # type: ignore[arg-type]
        longest = max(longest, time.perf_counter() - start)
        print(step, flush=True)
    stepper.check()
    torch.save({"held": held(optimizer), "longest": longest}, out)
    dist.destroy_process_group()


if __name__ == "__main__":
    run(int(sys.argv[1]), *sys.argv[2:])
