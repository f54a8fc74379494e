"""Write the pages of formats and of commands, and what was measured into those of results: `python -m docs.generate`.

What stands there of a format comes from its class and its module, from the index of the sample that its tests use, from
docs/formats/<name>.md if there is more to say, and from benchmarks/results/formats.json for what was run.
"""

import inspect
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from docs import commands
from docs.matrix import matrix, table
from docs.measured import with_results, with_runs
from fuzz.targets import make_target
from zoquant.backends.refused import METHODS, reason
from zoquant.checkpoint.diagnosis import extras, library
from zoquant.protocol import PLAIN_ROLES, Format, Span
from zoquant.registry import all_formats, format_named, list_backends

ROOT = Path(__file__).parent
PAGE = ROOT / "formats.md"
SPEED, QUALITY = ROOT / "results" / "speed.md", ROOT / "results" / "quality.md"
RESULTS = ROOT.parent / "benchmarks" / "results" / "formats.json"
_INTRO = """# Formats

<!-- Written by `make docs`; what is said by hand stands in the docstrings of the formats and in docs/formats/. -->

You want to know what is read, and what of it is trained. Every format but adapters, which need peft, opens on zoquant's
own layers without its library. Export changes the bytes of the moved values, and checksums of them, and no other.
`zoquant doctor` says which libraries are found on a machine, `zoquant inspect` what is in a checkpoint. The table names
the values of one small sample; each section has the rest.
"""


def main() -> None:
    """Write the pages, or with `--check` only tell whether they are what program and results give."""
    pages = generated()
    if "--check" in sys.argv[1:]:
        stale = [str(path) for path, text in pages.items() if path.read_text(encoding="utf-8") != text]
        sys.exit(f"{' and '.join(stale)} stale: run `make docs`." if stale else 0)
    for path, text in pages.items():
        path.write_text(text, encoding="utf-8")


def generated() -> dict[Path, str]:
    """Return the text of every page that is made, or made in part, by its path."""
    return {
        PAGE: page(),
        ROOT / commands.PAGE: commands.commands_page(),
        SPEED: with_results(SPEED.read_text(encoding="utf-8"), RESULTS.parent),
        QUALITY: with_runs(QUALITY.read_text(encoding="utf-8"), RESULTS.parent / "gradient.jsonl"),
    }


def page() -> str:
    """Return the text of the page."""
    found, live = list(all_formats()), _live_classes()
    rows = [_row(each, live) for each in found]
    head = ["format", "files", "continuous values", "live classes", "native", "vendor library", "status"]
    parts = [_INTRO, table(head, rows), *(_section(each, live) for each in found), _others(found, live), _refused()]
    if RESULTS.exists():
        parts.append(matrix(json.loads(RESULTS.read_text(encoding="utf-8"))))
    return "\n".join(parts)


def _refused() -> str:
    """Return the live classes that are claimed to be refused and the folders that nobody reads, with their reasons."""
    classes = [[f"`{name}`", why] for name in sorted(list_backends()) if (why := reason(name))]
    folders = [[f"`{name}`", why] for name, why in METHODS.items()]
    return (
        f"## Live classes that zoquant refuses\n\n{table(['class', 'why'], classes)}\n"
        f"## Folders that zoquant refuses\n\n{table(['quant_method', 'why'], folders)}"
    )


def _row(found: Format, live: Mapping[str, Sequence[str]]) -> list[str]:
    index = _index_of(found.name)
    values = sorted({(span.role, key.rpartition(".")[2]) for key, span in index.items() if span.role != "dense"})
    named = ", ".join(f"`{name}` ({role})" for role, name in values)
    status = (
        "tuned and exported" if values or found.name == "dense" else "runs; only what is not quantized can be tuned"
    )
    if {role for role, _ in values} and {role for role, _ in values} <= set(PLAIN_ROLES):
        named = "every tensor (adapter)"
    if not values:
        named = "every tensor (dense)" if found.name == "dense" else "none"
    classes = live.get(found.name, ())
    counted = _counted(classes) if classes else "none"
    return [f"[{found.name}](#{found.name})", _files(found), named, counted, "yes", _vendor(found), status]


def _index_of(name: str) -> Mapping[str, Span]:
    """Return the index of a format's sample."""
    with TemporaryDirectory() as folder:
        target = make_target(name, Path(folder))
        return format_named(name).index(target.path)


def _files(found: Format) -> str:
    methods = sorted(getattr(found, "methods", ()))
    if methods:
        return f"folders whose `quant_method` is {' or '.join(f'`{method}`' for method in methods)}"
    return (inspect.getdoc(type(found).sniff) or "").splitlines()[0].removeprefix("Tell whether `path` is ").rstrip(".")


def _vendor(found: Format) -> str:
    name, reason = (getattr(found, attribute, "") for attribute in ("library", "reason"))
    if reason:
        return f"none: {reason}"
    if not name:
        return "none"
    extra = extras().get(library(name).distribution)
    return f"{name} (`zoquant[{extra}]`)" if extra else name


def _live_classes() -> dict[str, list[str]]:
    """Return the claimed classes by the name of their backend, that of a format and what follows it left out."""
    classes: defaultdict[str, list[str]] = defaultdict(list)
    names = {each.name for each in all_formats()}
    for claimed, claim in sorted(list_backends().items()):
        if reason(claimed):
            continue
        name = claim.load().name
        classes[next((known for known in names if name.startswith(f"{known}-")), name)].append(claimed)
    return classes


def _counted(classes: Iterable[str]) -> str:
    counts: defaultdict[str, int] = defaultdict(int)
    for name in classes:
        counts[library(name).name] += 1
    return ", ".join(f"{count} of {name}" for name, count in sorted(counts.items()))


def _section(found: Format, live: Mapping[str, Sequence[str]]) -> str:
    module = inspect.getmodule(type(found))
    parts = [f"## {found.name}\n", _told(inspect.getdoc(type(found))), _told(inspect.getdoc(module))]
    classes = live.get(found.name, ())
    if classes:
        parts.append(f"Live layers: {', '.join(f'`{name}`' for name in classes)}.\n")
    notes = ROOT / "formats" / f"{found.name}.md"
    if notes.exists():
        parts.append(notes.read_text(encoding="utf-8"))
    return "\n".join(part for part in parts if part)


def _told(text: str | None) -> str:
    return f"{text.strip()}\n" if text else ""


def _others(found: Sequence[Format], live: Mapping[str, Sequence[str]]) -> str:
    """Return the live classes that belong to no format, such as zoquant's own layers."""
    names = {each.name for each in found}
    rows = list(_other_rows(names, live))
    return "## Other live classes\n\n" + table(["backend", "what it says", "classes"], rows)


def _other_rows(names: set[str], live: Mapping[str, Sequence[str]]) -> Iterator[list[str]]:
    for name, classes in sorted(live.items()):
        if name not in names:
            told = (inspect.getdoc(type(list_backends()[classes[0]].load())) or "").splitlines()[0]
            yield [name, told, ", ".join(f"`{each}`" for each in classes)]


if __name__ == "__main__":
    main()
