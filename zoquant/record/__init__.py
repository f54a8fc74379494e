"""What a run leaves: steps, delta, journal, trajectory, and the way back from each to the same bytes.

How a step is made stands in `optim`. Begin with `trajectory`.
"""
