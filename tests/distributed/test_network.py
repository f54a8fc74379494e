"""A worker, or a rank, in a network namespace of its own, whose link is cut and mended while the run goes on."""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from tests.distributed import remote, remote_rank
from tests.distributed.processes import closures, held
from tests.distributed.test_asynchronous import slowly, worker_of
from tests.distributed.test_distributed import alone

HERE, THERE = "10.213.77.1", "10.213.77.2"
CUT = 4.0  # seconds


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def namespace() -> Iterator[str]:
    """A namespace with a link to this one; skipped where the system grants none."""
    name, near, far = f"zq{os.getpid()}", f"zqn{os.getpid()}"[:15], f"zqf{os.getpid()}"[:15]
    if shutil.which("ip") is None or subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode:
        pytest.skip("network namespaces need iproute2 and root")
    try:
        ip("link", "add", near, "type", "veth", "peer", "name", far, "netns", name)
        ip("addr", "add", f"{HERE}/24", "dev", near)
        ip("link", "set", near, "up")
        for words in (("addr", "add", f"{THERE}/24", "dev", far), ("link", "set", far, "up")):
            ip("netns", "exec", name, "ip", *words)
        yield name
    finally:
        subprocess.run(["ip", "link", "delete", near], capture_output=True, check=False)
        ip("netns", "delete", name)


@pytest.mark.slow
def test_a_worker_that_is_cut_off_comes_back_to_the_same_bytes(namespace: str, tmp_path: Path) -> None:
    host = TCPStore(HERE, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=120))
    command = [sys.executable, "-m", "tests.distributed.remote", HERE, str(host.port), str(tmp_path / "far.pt")]
    process = subprocess.Popen(["ip", "netns", "exec", namespace, *command], stdout=subprocess.PIPE, text=True)
    near = f"zqn{os.getpid()}"[:15]
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        model, worker = worker_of(host, 0, steps=remote.STEPS)

        def cut() -> None:
            ip("link", "set", near, "down")
            time.sleep(CUT)
            ip("link", "set", near, "up")

        cutting = threading.Timer(0.3, cut)
        cutting.start()
        while not worker.finished:
            far = [each for each in worker.log.read(0) if each.worker == 1]
            pause = 1.0 if not far or cutting.is_alive() else 0.05
            worker.step(partial(slowly, pause, closures(model, worker.optimizer.steps, 1)[0]))  # type: ignore[arg-type]
        cutting.join()
        assert process.wait(timeout=120) == 0
    finally:
        process.kill()
    found = torch.load(tmp_path / "far.pt")
    assert found["longest"] > CUT / 2
    assert found["held"] == held(worker.optimizer)


def free_port() -> int:
    with socket.socket() as asked:
        asked.bind((HERE, 0))
        port: int = asked.getsockname()[1]
        return port


@pytest.mark.slow
def test_a_rank_that_is_cut_off_and_back_is_waited_for(namespace: str, tmp_path: Path) -> None:
    near, far, port = f"zqn{os.getpid()}"[:15], f"zqf{os.getpid()}"[:15], free_port()
    processes = []
    for rank, (link, inside) in enumerate([(near, []), (far, ["ip", "netns", "exec", namespace])]):
        command = [sys.executable, "-m", "tests.distributed.remote_rank", str(rank), HERE, str(port)]
        processes.append(
            subprocess.Popen(
                [*inside, *command, str(tmp_path / f"{rank}.pt")],
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "GLOO_SOCKET_IFNAME": link},
            )
        )
    try:
        first = processes[0]
        assert first.stdout is not None
        assert [first.stdout.readline() for _ in range(3)] == ["0\n", "1\n", "2\n"]
        ip("link", "set", near, "down")
        time.sleep(CUT)
        ip("link", "set", near, "up")
        assert [process.wait(timeout=120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    expected = alone("two-point", 1, 1, remote_rank.STEPS)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found["held"] == expected
        assert found["longest"] > CUT / 2
