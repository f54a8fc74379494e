"""Workers that wait for nobody: each measures at the theta that it has, and the order of the log decides.

A step that was measured after s steps and stands in slot n is n − s steps old. It is applied with the weight

    1 / (1 + age)   where age ≤ oldest,   0 beyond,

by every worker, in the order of the slots: so all of them, and every replay, come to the same bytes. Among n equal
workers a step is about n steps old, so the weights make the n steps of a round an average, as probes of one step are.

Source: Zhang, Gupta, Lian, Liu, "Staleness-aware async-SGD", 2016 (arXiv 1511.05950): the rate over the staleness.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch.distributed.distributed_c10d import Store

from examples.slow_links.step_log import LoggedStep, StepLog
from zoquant.errors import BaseMismatchError
from zoquant.kernels.noise.definition import child_seed
from zoquant.optim.closures import Closure, mean_loss
from zoquant.optim.optimizer import ZOSGD
from zoquant.record.step import Step

_RESTORED = 0xFFFFFFFF  # stands for the worker of a step that was put into the log from a trajectory


@dataclass(frozen=True)
class AsyncResult:
    """What a step of a worker came to.

    Attributes:
        loss: mean of the losses of its evaluations.
        derivative: mean of its derivatives, as measured.
        slot: its place in the log.
        age: steps of other workers that came in between.
        weight: what its derivatives are multiplied with.
    """

    loss: float
    derivative: float
    slot: int
    age: int
    weight: float


class AsyncZO:
    """One worker of an asynchronous run.

    All workers build the same optimizer. A worker that comes late, or comes back, does what the log holds; one whose
    optimizer has resumed a longer trajectory puts the rest of it into the log.

    Args:
        optimizer: the optimizer of this worker; its seed becomes one of the worker's own.
        store: a store that all workers reach, such as a `TCPStore`; a `PrefixStore` keeps runs apart.
        worker: number of this worker, from 0; no two that run have the same.
        steps: length of the log at which the run ends; None for no end.
        oldest: age beyond which a step has no weight; a few times the number of workers, whose steps are about as old
            as there are workers.

    Attributes:
        optimizer: the optimizer.
        log: the log; it counts the bytes that were sent and received.

    Raises:
        BaseMismatchError: the log belongs to a run with another base, other settings or other steps.
        ValueError: the optimizer evaluates many losses in one forward, or a number is out of its range.
    """

    def __init__(
        self, optimizer: ZOSGD, store: Store, *, worker: int, steps: int | None = None, oldest: int = 64
    ) -> None:
        if optimizer.together:
            raise ValueError(
                "AsyncZO: optimizer moves rows and columns, whose losses come of one forward. Take one of values."
            )
        if not (0 <= worker < _RESTORED and oldest >= 0):
            raise ValueError(f"AsyncZO: worker is {worker} and oldest {oldest}, expected at least 0 each.")
        header = {**optimizer.trajectory.header(), "seed": optimizer.seed, "probes": optimizer.probes}
        self.optimizer = optimizer
        self.worker = worker
        self.log = StepLog(store, {**header, "steps": steps, "oldest": oldest})
        self._end, self._oldest = steps, oldest
        optimizer.seed = child_seed(optimizer.seed, worker)
        self._join()

    @property
    def finished(self) -> bool:
        """Whether this worker has done all steps of the run."""
        return self._end is not None and self.optimizer.steps >= self._end

    def pull(self) -> int:
        """Do the steps of the log that this worker has not done, and return how many."""
        found = self.log.read(self.optimizer.steps)
        self._do(found)
        return len(found)

    def step(self, closure: Closure | Sequence[Closure], weights: Sequence[float] | None = None) -> AsyncResult | None:
        """Pull, measure the derivatives along directions of this worker's own, and push them.

        Args:
            closure: as for `ZOSGD.step`.
            weights: weight of each micro-batch.

        Returns:
            What came of it; None when the run ended before the step was done.

        Raises:
            LossError: a loss or a derivative is not finite. Nothing was pushed.
            Exception: whatever the closure raises. Nothing was pushed.
        """
        self.pull()
        if self.finished:
            return None
        optimizer, loss = self.optimizer, mean_loss(closure, weights)
        losses = [optimizer.loss_at(evaluation, loss) for evaluation in optimizer.plan()]
        measured, step = optimizer.step_of(losses)
        own = LoggedStep(self.worker, optimizer.steps, step)
        met = self.log.read(own.seen)
        while not met or met[-1] != own:
            slot = own.seen + len(met)
            if slot == self._end:
                self._do(met)
                return None
            met.append(self.log.offer(slot, own))
        self._do(met)
        age = len(met) - 1
        weight = weight_of(age, self._oldest)
        return AsyncResult(sum(losses) / len(losses), sum(measured) / len(measured), own.seen + age, age, weight)

    def _join(self) -> None:
        """Do what the log holds beyond this worker's steps, or put into it what it does not hold."""
        mine, found = self.optimizer.trajectory.steps, self.log.read(0)
        found += [
            self.log.offer(slot, LoggedStep(_RESTORED, slot, mine[slot])) for slot in range(len(found), len(mine))
        ]
        there = [self._weighted(slot, each) for slot, each in enumerate(found)]
        if there[: len(mine)] != mine:
            raise BaseMismatchError(
                "log of steps: it begins with other steps than this worker's trajectory. Call views.reset() and make a "
                "new optimizer, which does what the log holds, or begin the run in another store."
            )
        self.optimizer.extend(there[len(mine) :])

    def _do(self, found: Sequence[LoggedStep]) -> None:
        first = self.optimizer.steps
        self.optimizer.extend([self._weighted(first + number, each) for number, each in enumerate(found)])

    def _weighted(self, slot: int, logged: LoggedStep) -> Step:
        weight = weight_of(slot - logged.seen, self._oldest)
        return replace(logged.step, derivatives=tuple(weight * d for d in logged.step.derivatives))


def weight_of(age: int, oldest: int) -> float:
    """Return what the derivatives of a step are multiplied with: 1 / (1 + age), and 0 beyond the oldest age.

    Args:
        age: slots between those that the worker had seen and its own.
        oldest: the oldest age that counts.
    """
    return 1 / (1 + age) if age <= oldest else 0.0
