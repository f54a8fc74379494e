"""How step time and memory grow with model size, views, batch and directions: points, straight lines and a plot.

    python -m benchmarks.growth --largest 7000 --plot docs/images/growth.png      # needs 8 GB of memory
    python -m benchmarks.growth --short --out growth.json                  # whether it runs

Models are random: shapes of llama in blocks of Q4_1. Each size has a process of its own, for its memory, and the points
of any other sweep are measured in turn in one. What was measured is written at once: a run that stops goes on where it
stopped, and one with a larger `--largest` measures the larger models alone.
"""

from benchmarks.growth.lines import fits, told

__all__ = ["fits", "told"]
"""The line through each sweep, and what it says in words."""
