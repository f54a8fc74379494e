"""The command line, with a fault on order: `ZOQUANT_DIE=rank:call` kills that rank in its so many-th loss, once."""

import os
import signal
from typing import Any

from torch import Tensor

from zoquant.cli.app import main
from zoquant.tasks import Classification


def die_in_loss(rank: str, call: int) -> None:
    """Let the loss kill this process at one of its calls, if it is this rank and the launcher has not restarted it."""
    if os.environ["RANK"] != rank or os.environ["TORCHELASTIC_RESTART_COUNT"] != "0":
        return
    loss, calls = Classification.loss, iter(range(call))

    def dying(*arguments: Any) -> Tensor:
        if next(calls, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return loss(*arguments)

    Classification.loss = dying  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    if "ZOQUANT_DIE" in os.environ:
        rank, call = os.environ["ZOQUANT_DIE"].split(":")
        die_in_loss(rank, int(call))
    main()
