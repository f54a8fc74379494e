"""The steps of an asynchronous run, in order, in a store of torch.distributed: what stands there is the truth.

Slot n is the key `step/n`. A worker writes it by compare-and-set from nothing, so a slot is filled once, by one worker,
and no slot stays empty before a filled one, wherever a worker dies. The key `length` counts slots for whoever has to
read many; it may lag behind, and the slots after it are found one by one. It may run ahead, where two workers put the
same step into a slot, so its last slot is looked for before any is waited for.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch.distributed.distributed_c10d import Store

from zoquant.errors import BaseMismatchError, RankError
from zoquant.files.plain_json import parse_json
from zoquant.record.step import Step

_HEAD = struct.Struct("<IId")
_PAIR = struct.Struct("<Qd")


@dataclass(frozen=True)
class LoggedStep:
    """What a worker adds to the log.

    Attributes:
        worker: who measured it.
        seen: how many slots the worker had done when it measured.
        step: seeds, derivatives and rate; the derivatives are not yet weighted by their age.
    """

    worker: int
    seen: int
    step: Step

    def encode(self) -> str:
        """Return the step as it travels: 32 + 32 characters a probe."""
        pairs = zip(self.step.seeds, self.step.derivatives, strict=True)
        return (
            _HEAD.pack(self.worker, self.seen, self.step.rates[0]) + b"".join(_PAIR.pack(*pair) for pair in pairs)
        ).hex()

    @classmethod
    def decode(cls, text: bytes, slot: int) -> "LoggedStep":
        """Return what `encode` was given.

        Raises:
            RankError: slot `slot` holds something else, or numbers that are no finite step of float32.
        """
        try:
            data = bytes.fromhex(text.decode())
            worker, seen, lr = _HEAD.unpack(data[: _HEAD.size])
            pairs = [*_PAIR.iter_unpack(data[_HEAD.size :])]
        except (ValueError, struct.error) as error:
            why = f"slot {slot} of the log is no step: {error}. Begin again from a worker's trajectory."
            raise RankError(why) from error
        step = Step(tuple(seed for seed, _ in pairs), tuple(d for _, d in pairs), (lr,))
        has_seen = "" if pairs and seen <= slot else f"has {len(pairs)} directions and has seen {seen} slots"
        if fault := has_seen or step.fault():
            raise RankError(
                f"slot {slot} of the log, by worker {worker}, {fault}. Stop that worker; go on from another one's "
                "trajectory."
            )
        return cls(worker, seen, step)


class StepLog:
    """The log of one run.

    Args:
        store: a store that all workers reach, such as a `TCPStore`.
        header: what must be the same for all workers: anything JSON can hold. The first worker writes it.

    Attributes:
        sent: bytes of values that this worker has sent so far.
        received: bytes of values that it has received.

    Raises:
        BaseMismatchError: the log is of a run with another header; the first difference is named.
    """

    def __init__(self, store: Store, header: Mapping[str, Any]) -> None:
        self._store = store
        self.sent = self.received = 0
        mine = json.dumps(header, sort_keys=True)
        theirs = _parsed(store.compare_set("header", "", mine))
        for name, value in json.loads(mine).items():
            if theirs.get(name) != value:
                raise BaseMismatchError(
                    f"log of steps: its run has {name}={theirs.get(name)!r:.60}, this worker {value!r:.60}. Start all "
                    "workers with one model and one set of settings."
                )

    def read(self, start: int) -> list[LoggedStep]:
        """Return all steps from slot `start` on."""
        length = self._store.add("length", 0)
        while length > start and not self._store.check([_key(length - 1)]):
            length -= 1
        texts = self._store.multi_get([_key(slot) for slot in range(start, length)]) if length > start else []
        while self._store.check([_key(start + len(texts))]):
            texts.append(self._store.get(_key(start + len(texts))))
        self.received += sum(map(len, texts))
        return [LoggedStep.decode(text, start + number) for number, text in enumerate(texts)]

    def offer(self, slot: int, step: LoggedStep) -> LoggedStep:
        """Put a step into a slot unless another one stands there.

        Args:
            slot: the slot; those before it are filled.
            step: the step.

        Returns:
            What stands there now.
        """
        text = step.encode()
        there = self._store.compare_set(_key(slot), "", text)
        self.sent += len(text)
        self.received += len(there)
        if there.decode() == text:
            self._store.add("length", 1)
        return LoggedStep.decode(there, slot)


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        found = parse_json(text)
    except ValueError as error:
        raise BaseMismatchError(f"log of steps: its header is no JSON: {error}. Begin in another store.") from error
    if not isinstance(found, dict):
        raise BaseMismatchError("log of steps: its header is no JSON object. Begin in another store.")
    return found


def _key(slot: int) -> str:
    return f"step/{slot}"
