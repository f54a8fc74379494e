"""Workers that wait for nobody: an asynchronous run over a store of torch.distributed, on `zoquant.ZOSGD`."""

from examples.slow_links.step_log import LoggedStep, StepLog
from examples.slow_links.worker import AsyncResult, AsyncZO, weight_of

__all__ = ["AsyncResult", "AsyncZO", "LoggedStep", "StepLog", "weight_of"]
