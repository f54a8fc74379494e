"""How step time and memory grow with model size, views, batch and directions: points, straight lines and a plot.

    python -m benchmarks.growth --largest 7000 --plot docs/growth.png      # needs 8 GB of memory
    python -m benchmarks.growth --short --out growth.json                  # whether it runs

Models are random: shapes of llama in blocks of Q4_1. Every point is measured in a process of its own and written at
once, so a run that stops goes on where it stopped, and one with a larger `--largest` measures the larger models alone.
"""

from benchmarks.growth.lines import fits, told

__all__ = ["fits", "told"]
"""The line through each sweep, and what it says in words."""
