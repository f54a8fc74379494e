"""Rewards from outside: a command or an HTTP endpoint scores what a model wrote. JSON goes in, a number comes out."""

import json
import logging
import math
import os
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from http.client import HTTPException
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from zoquant.errors import RewardError

log = logging.getLogger("zoquant")

_MOST = 1 << 20
"""Bytes that are read of an answer."""
_FOR_EVER = 1e6
"""Seconds; the system's calls take not many more."""
_SKIPPED = "The step is skipped; see that it runs"


@dataclass(frozen=True)
class Generated:
    """What a model wrote for one example.

    Attributes:
        prompt: what it was given.
        text: what it wrote.
        references: the answers that count as right.
        row: the row of the data.
    """

    prompt: str
    text: str
    references: tuple[str, ...]
    row: dict[str, Any]


Reward = Callable[[Sequence[Generated]], float]
"""Takes the generations of a batch; returns their mean reward. The higher the better."""


@dataclass(frozen=True)
class OutsideReward:
    """Asks an endpoint or a command; one that does not answer is asked again.

    It is given `{"generations": [{"prompt": ..., "text": ..., "references": [...], "row": {...}}, ...]}` and answers
    with one number as JSON.

    Attributes:
        where: a URL that is posted to, or a command of the shell that reads its standard input.
        timeout: seconds to wait for a whole answer; inf waits for ever.
        tries: how often it is asked before the step is given up.

    Raises:
        ValueError: timeout is no number above 0.
    """

    where: str
    timeout: float = 30.0
    tries: int = 3

    def __post_init__(self) -> None:
        if not self.timeout > 0:
            raise ValueError(f"reward_timeout is {self.timeout}, expected seconds above 0, or inf to wait for ever.")

    @property
    def _limit(self) -> float | None:
        """Seconds as the system takes them."""
        return self.timeout if self.timeout < _FOR_EVER else None

    def __call__(self, generations: Sequence[Generated]) -> float:
        """Return the reward of a batch.

        Raises:
            RewardError: there was no answer in any try, or it is no number.
        """
        sent = json.dumps({"generations": [asdict(each) for each in generations]})
        is_url = self.where.startswith(("http://", "https://"))
        reasons = []
        for attempt in range(1, self.tries + 1):
            try:
                return self._number(self._post(sent) if is_url else self._run(sent))
            except (OSError, HTTPException, subprocess.SubprocessError) as error:
                reasons.append(_reason(error))
                log.info("reward %s, try %d of %d: %s", self.where, attempt, self.tries, reasons[-1])
        raise RewardError(
            f"reward {self.where}: no answer in {self.tries} tries of {self.timeout:g} s, the last one {reasons[-1]}. "
            f"{_SKIPPED}, or raise the timeout."
        )

    def _post(self, sent: str) -> str:
        """Ask on a thread of its own: the timeout of a socket is one of each piece, and a body may have any number."""
        answers: SimpleQueue[str | Exception] = SimpleQueue()
        Thread(target=self._ask, args=(sent, answers), daemon=True).start()
        try:
            answer = answers.get(timeout=self._limit)
        except Empty:
            raise TimeoutError("no whole answer in time") from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _ask(self, sent: str, answers: "SimpleQueue[str | Exception]") -> None:
        try:
            request = urllib.request.Request(self.where, sent.encode(), {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=self._limit) as answer:
                answers.put(answer.read(_MOST).decode("utf-8", "replace"))
        except Exception as error:  # raised again where it was asked
            answers.put(error)

    def _run(self, sent: str) -> str:
        """Run the command in a session of its own, so that what it has started ends with it."""
        with subprocess.Popen(
            self.where, shell=True, encoding="utf-8", errors="replace", start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ) as command:  # fmt: skip
            try:
                answer, told = command.communicate(sent, self._limit)
            except BaseException:
                os.killpg(command.pid, signal.SIGKILL)
                raise
        if command.returncode:
            raise subprocess.CalledProcessError(command.returncode, self.where, answer, told)
        return answer

    def _number(self, answer: str) -> float:
        try:
            found = json.loads(answer)
            number = math.nan if isinstance(found, bool) or not isinstance(found, int | float) else float(found)
        except (ValueError, OverflowError, RecursionError):
            number = math.nan
        if not math.isfinite(number):
            raise RewardError(
                f"reward {self.where}: answered {answer[:80]!r}, expected one finite number as JSON. {_SKIPPED}."
            )
        return number


def _reason(error: Exception) -> str:
    """Return why there was no answer, with the last line that a command complained with."""
    told = error.stderr.strip().splitlines()[-1:] if isinstance(error, subprocess.CalledProcessError) else []
    return ": ".join([type(error).__name__, str(error).rstrip("."), *(line[:200] for line in told)])
