"""Probes of a step, and the two ways to evaluate their losses: written into the model, or within one forward.

Either says whether probes share a forward, so that a closure is told how often to `repeat` its batch, and how many
`forwards` of the batch a step costs; returns the `losses` of the probes of a step in order, or the `loss` of one, where
the model may be left at a probe; and the share of a group's stored values that a probe changes.
"""

from zoquant.optim.probes.forward_probes import ForwardProbes
from zoquant.optim.probes.written_probes import WrittenProbes

Prober = WrittenProbes | ForwardProbes

__all__ = ["ForwardProbes", "Prober", "WrittenProbes"]
