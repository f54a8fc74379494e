"""A worker of an asynchronous run that reaches its store over a network.

python -m tests.distributed.remote host port out
"""

import sys
import time
from datetime import timedelta
from functools import partial

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from tests.distributed.processes import closures, held
from tests.distributed.test_asynchronous import slowly, worker_of

STEPS = 40


def run(host: str, port: int, out: str) -> None:
    """Work until the log is full, and write what this worker holds."""
    torch.set_num_threads(1)
    store = TCPStore(host, port, timeout=timedelta(seconds=120), wait_for_workers=False)
    model, worker = worker_of(store, 1, steps=STEPS)
    print("begun", flush=True)
    longest = 0.0
    while not worker.finished:
        start = time.perf_counter()
        worker.step(partial(slowly, 0.05, closures(model, worker.optimizer.steps, 1)[0]))  # type: ignore[arg-type]
        longest = max(longest, time.perf_counter() - start)
    torch.save({"held": held(worker.optimizer), "longest": longest}, out)


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]), sys.argv[3])
