"""Flags from the keys of the config: one for each, with its help text and its default."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from zoquant.errors import ConfigError
from zoquant.tasks import TaskSettings
from zoquant.tasks.spec import told_missing
from zoquant.training import Config, Source
from zoquant.training.config import AUTO, Key, convert, key_of

TASK = tuple(each.name for each in fields(TaskSettings))
"""The keys that say what a task is."""
SOURCE = ("runtime", "compute_dtype", "activation_dtype", "device")
"""The keys that say how a model is computed."""
MOST = "What most runs need"
_STEPS = "The steps"
PANELS = {
    MOST: ("model", "data", "eval_data", "template", "labels", "steps", "batch_size", "lr"),
    "The task": (*TASK, "batches", "protocol", "objective", "reward", "reward_timeout"),
    "What moves": ("subspace", "roles", "include", "exclude", "coupled", "space"),
    "How it is computed": (*SOURCE, "memory", "micro_batches", "checkpoint"),
    "Steps by forward passes": ("eps", "probes", "noise", "density", "unit", "estimator"),
    _STEPS: (),
}
"""In which part of the help a key stands: the first that names it, else the last."""

_ARGUMENT = "model"
_SINGULAR = {"roles": "--role"}
"""Flags that may be repeated are named after one of what they take."""
_ESCAPED = ("template", "stop")
r"""Flags in whose text \n is a new line."""

Command = Callable[..., None]


def panel_of(name: str) -> str:
    """Return the part of the help that a key stands in."""
    return next((panel for panel, names in PANELS.items() if name in names), _STEPS)


def with_flags(*names: str) -> Callable[[Command], Command]:
    """Return what gives a command a flag for every key named, before the parameters of its own.

    The command takes `given`, the values by key that stand on the command line, and its own flags.
    """
    made = [_parameter(key_of(name)) for name in names]

    def decorate(command: Command) -> Command:
        own = [each for each in inspect.signature(command).parameters.values() if each.name != "given"]

        def call(**values: Any) -> None:
            said = {each.name: values.pop(each.name) for each in made}
            command(given={name: value for name, value in said.items() if value not in (None, [])}, **values)

        parameters = [*made, *(each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own)]
        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {each.name: each.annotation for each in parameters}
        call.__doc__ = command.__doc__
        return call

    return decorate


def config_of(given: Mapping[str, Any], path: Path | None = None, lacks: Sequence[str] = ()) -> Config:
    """Return the config that the command line stands for, and a file where one is named.

    Args:
        given: values by key.
        path: the file.
        lacks: what else is missing on the command line, to be told together.

    Raises:
        ConfigError, DataError, ValueError: see `Config.read`.
    """
    said = {name: ",".join(value) if isinstance(value, list) else value for name, value in given.items()}
    said |= {name: said[name].replace("\\n", "\n") for name in _ESCAPED if name in said}
    return Config.read(path, said, lacks)


def source_of(given: Mapping[str, Any]) -> Source:
    """Return the model of some values by key, and how it is computed.

    Raises:
        ConfigError: there is no model, or a value is not one of the choices.
    """
    if _ARGUMENT not in given:
        raise ConfigError(told_missing([_ARGUMENT]))
    return Source(**{name: convert(name, value, key_of(name).kind) for name, value in given.items()})


def _parameter(key: Key) -> inspect.Parameter:
    return inspect.Parameter(
        key.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[_type(key) | None, _option(key)]
    )


def _type(key: Key) -> Any:
    """Return what typer shall read: text is left to the config, which knows the choices."""
    if get_origin(key.kind) is tuple or any(get_origin(each) is tuple for each in get_args(key.kind)):
        return list[str]
    if key.kind == int | None:
        return int
    return key.kind if key.kind in (bool, int, float) else str


def _option(key: Key) -> Any:
    if key.name == _ARGUMENT:
        return typer.Argument(help=key.help)
    name = f"--{key.name.replace('_', '-')}"
    flag = f"{name}/--no-{name[2:]}" if key.kind is bool else _SINGULAR.get(key.name, name)
    return typer.Option(
        flag, help=key.help, show_default=_shown(key), rich_help_panel=panel_of(key.name),
        autocompletion=_completion(key.kind),
    )  # fmt: skip


def _completion(kind: Any) -> Callable[[str], list[str]]:
    """Return what offers a shell the words that a key may be, where it is one of some words."""
    literals = [each for each in (kind, *get_args(kind)) if get_origin(each) is Literal]
    words = [word for each in literals for word in get_args(each)]

    def beginning(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return beginning


def _shown(key: Key) -> str | bool:
    if key.default is MISSING:
        return False
    if key.default is None:
        return AUTO if float in get_args(key.kind) else False
    text = ", ".join(key.default) if isinstance(key.default, tuple) else str(key.default)
    return text.replace("\n", "\\n")
