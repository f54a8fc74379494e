"""A run's folder as a page: one HTML file without scripts.

What a run writes stands in `training.run_folder`. Begin with `writing`.
"""

from zoquant.report.writing import write_report

__all__ = ["write_report"]
