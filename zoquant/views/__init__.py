"""The continuous values of a live model as one vector: found, checked, read, written.

How a step moves them is no matter of this wing: that is `optim`. Begin with `attach`.
"""
