"""What a run leaves behind: steps and their rules, delta, journal, trajectory, and the way back to the same bytes.

How a step is made stands in `optim`. Begin with `trajectory`.
"""
