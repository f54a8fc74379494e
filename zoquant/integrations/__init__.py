"""Trainers of other libraries over forward passes alone.

Each module imports its library, and the core imports none. Begin with `transformers` or `lightning`.
"""
