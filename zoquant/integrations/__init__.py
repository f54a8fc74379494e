"""Trainers of other libraries; a run in one call.

Each module imports its library, and the core imports none. Begin with `one_call`, `transformers` or `lightning`.
"""
