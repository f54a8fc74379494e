"""A whole run as one file: every flag of `zoquant train` is a key, and every key a field of one of three dataclasses.

A new flag is one line: a field `name: Annotated[type, "what it means"] = default`.
"""

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import torch

from zoquant.checkpoint.loading import Runtime
from zoquant.checkpoint.sha256 import checkpoint_sha256
from zoquant.errors import ConfigError, DataError, shown
from zoquant.files.sha256 import file_sha256
from zoquant.registry import own_package
from zoquant.tasks import TaskSettings
from zoquant.tasks.spec import lacking, told_missing
from zoquant.training.config.file import ConfigFile, toml_text
from zoquant.training.config.value import AUTO, convert, parse_size
from zoquant.training.settings import Settings
from zoquant.training.source import Source

Batches = Literal["auto", "balanced", "shuffled"]
T = TypeVar("T", TaskSettings, Settings)
_DATA = ("data", "eval_data")
_FILES = ("model", *_DATA)
_SHA256 = "sha256"
_SAY_REWARD = "# Give its reward again, by --reward: a file alone runs no command, and sends nothing to a URL."


@dataclass(frozen=True)
class Key:
    """A key of the config file, which is a flag as well.

    Attributes:
        name: the key.
        kind: the type of its values.
        help: what it means.
        default: its value where it is not given; `dataclasses.MISSING` if it must be.
    """

    name: str
    kind: Any
    help: str
    default: Any


@dataclass(frozen=True)
class Config:
    """A run: the model, the data, and the settings. The text beside a field says what it means.

    Attributes:
        asked: what is learned from the data.
        settings: what decides the bytes, together with model, data and task.
        sha256: what the files hashed to when the run was made, by `model`, `data` and `eval_data`; checked where given.
    """

    model: Annotated[str, "A checkpoint: a path, or owner/name[/file] on the Hugging Face Hub."]
    data: Annotated[
        str,
        "Rows: a .jsonl, .csv, .tsv, .parquet or .txt file, a folder with one for each split, "
        "hub:owner/name[:config][:split], or hub for the data of a named task.",
    ]
    asked: TaskSettings
    eval_data: Annotated[str | None, "Rows to evaluate on before and after."] = None
    eval_every: Annotated[
        int | None,
        "Steps between evaluations on eval_data; 0 for none between start and end. Not given: a tenth of the run, or "
        "more where that would take over half as many examples as training.",
    ] = None
    protocol: Annotated[
        Literal["mezo"] | None, "mezo: 1,000 rows to train on, 500 for choices, 1,000 to test the best step on."
    ] = None
    batches: Annotated[
        Batches,
        "balanced: every label has its share of a batch; shuffled: rows as they are; auto: balanced where there are "
        "labels, with a protocol shuffled, as in the papers' code.",
    ] = "auto"
    objective: Annotated[str, "loss, or what is made larger: accuracy, f1, exact-match, rouge-l, reward."] = "loss"
    reward: Annotated[str | None, "A URL or a shell command: JSON with generations in, one number out."] = None
    reward_timeout: Annotated[float, "Seconds to wait for the reward, in each of three tries."] = 30.0
    runtime: Annotated[Runtime, "Who computes the forward: auto, native or vendor."] = "auto"
    compute_dtype: Annotated[str, "Matrix products in float32, bfloat16, float16 or auto."] = "auto"
    activation_dtype: Annotated[
        str, "What passes between native layers: bfloat16, float16, or float32, which is auto."
    ] = "auto"
    device: Annotated[str, "cpu, cuda, cuda:1, ... or auto."] = "auto"
    memory: Annotated[
        str | None, "Stay below it, such as 6GiB: decides micro_batches, checkpoint, and the rule if none is given."
    ] = None
    settings: Settings = field(default_factory=Settings)
    sha256: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.eval_every is not None and self.eval_every < 0:
            raise ValueError(f"eval_every is {self.eval_every}, expected 0 or more steps.")
        if self.memory is not None:
            parse_size(self.memory)
        if self.batches == "balanced" and not self.asked.has_labels:
            raise DataError(f"batches is 'balanced', but task {self.asked.task} has no labels. Take shuffled.")

    @classmethod
    def of(
        cls, values: Mapping[str, Any], sha256: Mapping[str, str] | None = None, lacks: Sequence[str] = ()
    ) -> "Config":
        """Return the config that some values by key make, with defaults for the others.

        Args:
            values: text, numbers, lists and tables, as a file or the command line has them.
            sha256: what the files must hash to.
            lacks: what else is missing, to be told together with keys that are.

        Raises:
            ConfigError: a key is unknown, a value is of another type, or one that must be given is missing.
            ValueError: a setting is out of its range.
        """
        for name in values:
            key_of(name)
        missing = [name for name, key in keys().items() if name not in values and key.default is MISSING]
        missing += lacking(str(values.get("task", TaskSettings.task)), values.get("template"), values.get("labels"))
        if missing or lacks:
            raise ConfigError(told_missing([*missing, *lacks]))
        taken = {name: convert(name, value, key_of(name).kind) for name, value in values.items()}
        asked, settings = _made(TaskSettings, taken), _made(Settings, taken)
        return cls(**taken, asked=asked, settings=settings, sha256=dict(sha256 or {}))

    @classmethod
    def read(
        cls, path: str | Path | None, changes: Mapping[str, Any] | None = None, lacks: Sequence[str] = ()
    ) -> "Config":
        """Return the config of a TOML or YAML file.

        Args:
            path: a file whose name ends in .toml, .yaml or .yml; None for none.
            changes: values by key that go before those of the file; a reward must be among them, since it is run.
            lacks: what else is missing, to be told together with keys that are.

        Raises:
            ConfigError: the file cannot be read, or says something that cannot be; the key and the line are named.
            ValueError: a setting is out of its range.
        """
        changes = changes or {}
        if path is None:
            return cls.of(changes, lacks=lacks)
        file = ConfigFile.read(path)
        values = dict(file.values)
        sha256 = values.pop(_SHA256, {})
        with file.naming_lines():
            _check_sha256(sha256)
            for name, value in values.items():
                convert(name, value, key_of(name).kind)
            if values.get("reward") is not None and "reward" not in changes:
                raise ConfigError(
                    f"reward is {shown(values['reward'])}: a file alone runs no command, and sends nothing to a URL. "
                    "If you trust it, say it on the command line as well: --reward.",
                    "reward",
                )
        kept = {name: text for name, text in sha256.items() if name not in changes}
        return cls.of(values | dict(changes), kept, lacks)

    @property
    def source(self) -> Source:
        """The model and how its forward is computed."""
        return Source(self.model, self.runtime, self.compute_dtype, self.activation_dtype, self.device)

    def resolved(self, *, opened: bool = False) -> "Config":
        """Return the config with what `auto` means here, and with the sha256 of every file.

        Of a model that is opened already no file is looked for. `auto` stays for what the run itself will choose, for
        the runtime on a GPU and what passes between its layers. Data that is a folder or on the Hub has no sha256.

        Raises:
            ConfigError: a file is not the one that `sha256` names.
        """
        device, dtype = self.source.resolve()
        found = {} if opened else {"model": checkpoint_sha256(self.model)}
        data = {name: Path(path) for name in _DATA if (path := getattr(self, name))}
        found |= {name: file_sha256(path) for name, path in data.items() if path.is_file()}
        for name, expected in self.sha256.items():
            if found.get(name, expected) != expected:
                raise ConfigError(
                    f"{name}: {getattr(self, name)} has sha256 {found[name]}, expected {expected}. It is not the file "
                    f"that the config was made with: name another {name}, or drop the line from [{_SHA256}]."
                )
        runtime = self.source.resolve_runtime()
        plain = runtime == "native" and self.activation_dtype == "auto"
        balanced = self.protocol is None and self.asked.has_labels
        batches: Batches = self.batches if self.batches != AUTO else "balanced" if balanced else "shuffled"
        settings = self.settings.resolved()
        if self.memory is not None:
            settings = replace(settings, rule=self.settings.rule)  # the bound decides it
        return replace(
            self, settings=settings, batches=batches, device=str(device),
            compute_dtype=str(dtype).removeprefix("torch."), runtime=runtime,
            activation_dtype="float32" if plain else self.activation_dtype, sha256=found,
        )  # fmt: skip

    def to_toml(self) -> str:
        """Return the text of a TOML file that says all of this; a value of None that is not `auto` is left out."""
        head = [
            f"# Made by {own_package()}, torch {torch.__version__}, {torch.get_num_threads()} threads, "
            f"{platform.machine()}.",
            "# The same run again, to the same bytes: zoquant train --config config.toml --out NEW",
            *([] if self.reward is None else [_SAY_REWARD]),
        ]
        values = {name: value for name, value in self._values() if value is not None}
        tables = {_SHA256: self.sha256} if self.sha256 else {}
        return "\n".join([*head, toml_text(values | tables)])

    def _values(self) -> Iterator[tuple[str, Any]]:
        for name, key in keys().items():
            value = getattr(next(owner for owner in (self, self.asked, self.settings) if name in vars(owner)), name)
            yield name, AUTO if value is None and float in get_args(key.kind) else value


def keys() -> dict[str, Key]:
    """Return every key by its name: the annotated fields of `Config`, `TaskSettings` and `Settings`."""
    return {key.name: key for owner in (Config, TaskSettings, Settings) for key in _keys_of(owner)}


def key_of(name: str) -> Key:
    """Return the key of a name.

    Raises:
        ConfigError: there is none; the nearest is named.
    """
    known = keys()
    if name not in known:
        near = get_close_matches(name, known, n=1)
        told = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}."
        raise ConfigError(f"{name!r} is no key: {told}", name)
    return known[name]


def _made(owner: type[T], values: dict[str, Any]) -> T:
    """Return a dataclass of the values that are its own, which are taken out of the others."""
    return owner(**{each.name: values.pop(each.name) for each in fields(owner) if each.name in values})


def _keys_of(owner: Any) -> Iterator[Key]:
    hints = get_type_hints(owner, include_extras=True)
    for each in fields(owner):
        if get_origin(hints[each.name]) is Annotated:
            kind, text = get_args(hints[each.name])
            yield Key(each.name, kind, text, each.default)


def _check_sha256(found: Any) -> None:
    if not isinstance(found, dict):
        raise ConfigError(f"{_SHA256} is {shown(found)}, expected a table of {', '.join(_FILES)}.", _SHA256)
    for name in found:
        if name not in _FILES:
            key = f"{_SHA256}.{name}"
            raise ConfigError(f"{key} is no file of a run, expected {', '.join(_FILES)}.", key)
