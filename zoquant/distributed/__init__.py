"""Training by many processes on torch.distributed: losses and seeds travel, nothing else.

`DistributedZO` shares out the evaluations of a step among ranks that go in step. `AsyncZO` lets workers on slow links
go each at its own pace, through a log of steps in a store.
"""

from zoquant.distributed.asynchronous import AsyncResult, AsyncZO, weight_of
from zoquant.distributed.log import LoggedStep, StepLog
from zoquant.distributed.optimizer import DistributedZO

__all__ = ["AsyncResult", "AsyncZO", "DistributedZO", "LoggedStep", "StepLog", "weight_of"]
