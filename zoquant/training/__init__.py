"""A whole run: its config and settings, its loop, its folder.

How one step is made stands in `optim`. Begin with `finetune`.
"""

from zoquant.training.config import Config
from zoquant.training.evaluate import evaluate
from zoquant.training.finetune import finetune
from zoquant.training.job import Job
from zoquant.training.outcome import Outcome
from zoquant.training.progress import OnProgress, Progress
from zoquant.training.run_folder import RunFolder
from zoquant.training.settings import Settings
from zoquant.training.source import Source
from zoquant.training.trainer import run

__all__ = [
    "Config",
    "Job",
    "OnProgress",
    "Outcome",
    "Progress",
    "RunFolder",
    "Settings",
    "Source",
    "evaluate",
    "finetune",
    "run",
]
