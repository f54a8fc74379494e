"""The command that measures a model on rows with known answers."""

from typing import Annotated, Any

import typer

from zoquant.cli.flags import SOURCE, TASK, config_of, with_flags
from zoquant.cli.progress import waiting
from zoquant.cli.show import JSON, score, show_json, show_pairs


@with_flags("model", "data", *TASK, "protocol", *SOURCE)
def eval_command(
    given: dict[str, Any],
    shots: Annotated[int, typer.Option(help="Worked examples before every prompt; 0 is zero-shot.")] = 0,
    shots_from: Annotated[str | None, typer.Option(help="Rows to draw them from. Not given: the train split.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the draws of --shots and --protocol.")] = 0,
    delta: Annotated[
        str | None, typer.Option(help="What training saved: a delta, a run's folder or owner/name.")
    ] = None,
    json: JSON = False,
) -> None:
    """Measure a checkpoint on rows with known answers, zero-shot or with worked examples.

    Example: `zoquant eval model.gguf --data test.jsonl --template "{sentence} It was {label}"
    --labels "0=terrible,1=great" --delta run`
    """
    from zoquant.training import evaluate

    chosen = config_of(given)
    with waiting(f"measuring {chosen.model} on {chosen.data}", silent=json):
        found = evaluate(
            chosen.source, chosen.data, chosen.asked, delta,
            protocol=chosen.protocol, shots=shots, shots_from=shots_from, seed=seed,
        )  # fmt: skip
    if json:
        show_json(found.to_dict())
        return
    pairs: dict[str, Any] = {"found": score(found.to_dict()), "examples": found.examples}
    if chosen.asked.kind == "generation":
        pairs |= {f"wrote {number}": sample.text for number, sample in enumerate(found.samples[:3], 1)}
    show_pairs(f"{chosen.model}, {shots} worked examples" if shots else chosen.model, pairs)
