"""Mutations of a whole checkpoint: one of its files by what it is, or which files there are."""

from collections.abc import Callable, Mapping

from fuzz.archive_mutations import mutate_archive
from fuzz.byte_mutations import mutate_bytes
from fuzz.choices import Choices
from fuzz.journal_mutations import mutate_journal
from fuzz.json_mutations import mutate_json
from fuzz.tensor_mutations import mutate_safetensors
from fuzz.text_mutations import mutate_text


def mutate_lines(content: bytes, choices: Choices) -> bytes:
    """Change one thing in one line of JSON lines."""
    lines = content.split(b"\n")
    place = choices.below(len(lines))
    lines[place] = (mutate_json if choices.below(4) else mutate_bytes)(lines[place], choices)
    return b"\n".join(lines)


MOST = 4
"""Mutations of one case."""
BY_SUFFIX: dict[str, Callable[[bytes, Choices], bytes]] = {
    "json": mutate_json, "safetensors": mutate_safetensors, "pt": mutate_archive, "bin": mutate_archive,
    "journal": mutate_journal, "jsonl": mutate_lines, "toml": mutate_text, "yaml": mutate_text, "csv": mutate_text,
    "tsv": mutate_text, "txt": mutate_text, "lock": mutate_json,
}  # fmt: skip
NAMES = (
    "config.json", "quantize_config.json", "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
    "qmodel.pt", "adapter_config.json", "adapter_model.safetensors", "quant_config.json", "hf_quant_config.json",
    "model-00001-of-00002.safetensors",
)  # fmt: skip
"""Files that formats look for."""


def mutate(files: Mapping[str, bytes], script: bytes) -> dict[str, bytes | None]:
    """Return the files that a script changes in a checkpoint: their new content, or None for those it takes away.

    Args:
        files: the content of every file of a sound checkpoint, by name.
        script: any bytes; the same ones give the same changes.
    """
    choices, changed = Choices(script), dict[str, bytes | None]()
    for _ in range(1 + choices.below(MOST)):
        here = {name: data for name, data in {**files, **changed}.items() if data is not None}
        names = sorted(here, key=lambda name: (not name.endswith(".json"), name))
        if not names:
            break
        name = choices.one(names)
        if choices.below(12) or len(files) == 1:
            how = BY_SUFFIX.get(name.rpartition(".")[2], mutate_bytes) if choices.below(8) else mutate_bytes
            changed[name] = how(here[name], choices)
        else:
            _move(here, name, choices, changed)
    return changed


def _move(here: Mapping[str, bytes], name: str, choices: Choices, changed: dict[str, bytes | None]) -> None:
    how, other = choices.below(4), choices.one(NAMES)
    if how == 0:
        changed[name] = None
    elif how == 1:
        changed[other] = here[name]
    elif how == 2:
        changed[other] = here[name]
        changed[name] = None
    else:
        changed[other] = choices.bytes(choices.below(32))
