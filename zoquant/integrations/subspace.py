"""What a trainer of another library, whose loss is one number a batch, can move."""

from zoquant.settings import Settings


def check_subspace(settings: Settings) -> None:
    """Refuse a direction for each example.

    Raises:
        ValueError: the settings ask for rows and columns.
    """
    if settings.subspace == "rows-columns":
        raise ValueError(
            "Settings: subspace is 'rows-columns', which needs the loss of each example, but this trainer's loss is "
            "one number a batch. Leave subspace out, or take zoquant train or zoquant.BatchedZO."
        )
