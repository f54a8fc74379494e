"""Which settings are refused where another library runs the loop."""

from collections.abc import Mapping
from dataclasses import fields

from zoquant.training import Settings


def refuse_settings(who: str, settings: Settings, elsewhere: Mapping[str, str]) -> None:
    """Refuse settings that would have no effect; `elsewhere` says what to set instead.

    Raises:
        ValueError: a setting that is up to the other library is not at its default.
    """
    usual = {field.name: field.default for field in fields(Settings)}
    for name, instead in elsewhere.items():
        if getattr(settings, name, None) != usual.get(name):
            raise ValueError(f"{who}: {name} is {getattr(settings, name)!r}, but that is not up to it here. {instead}.")


def check_subspace(settings: Settings) -> None:
    """Refuse a direction for each example.

    Raises:
        ValueError: the settings ask for rows and columns.
    """
    if settings.subspace == "rows-columns":
        raise ValueError(
            "Settings: subspace is 'rows-columns', which needs the loss of each example, but this trainer's loss is "
            "one number a batch. Leave subspace out, or take zoquant train, or zoquant.ZOSGD of rows and columns."
        )
