"""Trainers of other libraries, driven by forward passes alone. Each module imports its library; the core imports none."""
