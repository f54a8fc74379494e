"""Bytes on disk, and readers of strangers' files: whole-or-not writes, locks, safe paths, the Hub; and memory.

Nothing here knows a model or a format. Begin with `atomic_files`.
"""
