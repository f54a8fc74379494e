"""The options that say what is learned or measured, of every command that needs data."""

from typing import Annotated

import typer

from zoquant.tasks import TaskSettings
from zoquant.tasks.catalog import CATALOG
from zoquant.tasks.template import parse_words

Data = Annotated[
    str,
    typer.Option(
        help="Rows: a .jsonl, .csv, .tsv, .parquet or .txt file, a folder with one for each split, "
        "hub:owner/name[:config][:split], or hub for the data of a named task."
    ),
]
TaskName = Annotated[
    str,
    typer.Option(
        "--task", help=f"classification, choice, generation, masked, text, chat, or one of {', '.join(CATALOG)}."
    ),
]
TemplateText = Annotated[
    str | None,
    typer.Option("--template", help="Prompt with columns in braces, {label} for the answer: '{text} It was {label}'."),
]
Labels = Annotated[str | None, typer.Option(help="The word for each label value: '0=terrible,1=great'.")]
LabelColumn = Annotated[str | None, typer.Option(help="The column that fills {label}. Not given: label.")]
Options = Annotated[str, typer.Option(help="Choice: the column with the list of options, or a column for each: a,b.")]
MetricName = Annotated[str, typer.Option("--metric", help="Generation: f1, exact-match, rouge-l or loss.")]
MaxNewTokens = Annotated[int, typer.Option(help="Generation: most tokens of an answer.")]
Stop = Annotated[str, typer.Option(help="Generation: the text that ends an answer; '' for the end of the text.")]
Protocol = Annotated[
    str | None, typer.Option(help="mezo: 1,000 rows to train on, 500 for choices, 1,000 to test on, by the seed.")
]

KIND, OPTIONS, METRIC, TOKENS, STOP = "classification", "options", "f1", 50, "\\n"
"""The defaults, as a command line has them."""


def task_settings(
    task: str, template: str | None, labels: str | None, label_column: str | None, options: str, metric: str,
    max_new_tokens: int, stop: str, calibrate: bool = False,
) -> TaskSettings:  # fmt: skip
    """Return the settings that the options of a command line stand for.

    Raises:
        DataError: an option is missing, or cannot be understood.
    """
    return TaskSettings(
        task=task, template=template, labels=None if labels is None else parse_words(labels),
        label_column=label_column, options=tuple(options.split(",")), metric=metric, max_new_tokens=max_new_tokens,
        stop=stop.replace("\\n", "\n"), calibrate=calibrate,
    )  # fmt: skip
