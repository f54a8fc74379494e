"""Tasks: what the training loop asks for, and a file for each kind of task."""

from zoquant.tasks.classification import Batch, Classification
from zoquant.tasks.evaluation import Evaluation, Metric, Sample
from zoquant.tasks.task import Task
from zoquant.tasks.template import Prompt, Template

__all__ = [
    "Batch",
    "Classification",
    "Evaluation",
    "Metric",
    "Prompt",
    "Sample",
    "Task",
    "Template",
]
