"""Tasks: what the training loop asks for, and a file for each kind of task."""

from zoquant.tasks.evaluation import Evaluation, Metric, Sample
from zoquant.tasks.kinds.choice import MultipleChoice
from zoquant.tasks.kinds.classification import Batch, Classification
from zoquant.tasks.kinds.generation import Generation
from zoquant.tasks.kinds.language import LanguageModeling
from zoquant.tasks.kinds.masked import Cloze, MaskedClassification
from zoquant.tasks.spec import TaskSettings
from zoquant.tasks.task import PerExample, Task
from zoquant.tasks.template import Prompt, Template

__all__ = [
    "Batch",
    "Classification",
    "Cloze",
    "Evaluation",
    "Generation",
    "LanguageModeling",
    "MaskedClassification",
    "Metric",
    "MultipleChoice",
    "PerExample",
    "Prompt",
    "Sample",
    "Task",
    "TaskSettings",
    "Template",
]
