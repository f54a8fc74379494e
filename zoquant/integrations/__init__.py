"""Trainers of other libraries over forward passes alone. Each module imports its library; the core imports none."""
