"""Bytes on disk, and readers of strangers' files: whole-or-not writes, locks, digests, safe paths, the Hub.

Nothing here knows a model or a format. Begin with `atomic_files`.
"""
