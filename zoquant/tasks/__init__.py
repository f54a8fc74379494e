"""From data to losses and scores: a file for each kind of task, rows, metrics, objectives.

The loop that asks for them stands in `training`. Begin with `task` and `spec`.
"""

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
