"""Bytes on disk: whole-or-not writes, locks, safe paths, readers of strangers' files, the Hub, and memory.

Nothing here knows a model or a format. Begin with `atomic_files`.
"""
