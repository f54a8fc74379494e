"""Probes of a step, and the two ways to evaluate their losses: written into the model, or within one forward."""
