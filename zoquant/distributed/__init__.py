"""Many processes: ranks share out the losses of a step and end with the same bytes.

The step itself stands in `optim`. Begin with `optimizer`.
"""

from zoquant.distributed.optimizer import DistributedZO

__all__ = ["DistributedZO"]
