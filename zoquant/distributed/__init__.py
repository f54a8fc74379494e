"""Many processes: ranks share out the losses of a step and end with the same bytes.

The step itself stands in `optim`. Begin with `optimizer`.
"""

from zoquant.distributed.asynchronous import AsyncResult, AsyncZO, weight_of
from zoquant.distributed.log import LoggedStep, StepLog
from zoquant.distributed.optimizer import DistributedZO

__all__ = ["AsyncResult", "AsyncZO", "DistributedZO", "LoggedStep", "StepLog", "weight_of"]
