"""From files to a model and back: load, inspect, export.

What a format looks like stands in `backends`. Begin with `load` and `export`.
"""
