"""Trainers of other libraries, and a whole run in one call of Python.

Each module imports its library, and the core imports none. Begin with `one_call`, `transformers` or `lightning`.
"""
