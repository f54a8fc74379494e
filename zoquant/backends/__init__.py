"""A folder a format: what its files hold, and where its live layers keep their values.

The core imports none of this. Begin with `native`, the smallest, and docs/add-a-format.md.
"""
