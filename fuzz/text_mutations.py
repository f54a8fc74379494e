"""Mutations of text that is written by hand: bytes, lines, and words that a parser of TOML, YAML or tables knows."""

from fuzz.byte_mutations import mutate_bytes
from fuzz.choices import Choices

WORDS = (
    "!!bool x", "!!int ''", "!!timestamp x", "!!python/object/apply:os.system [id]", "!!binary x", "&a [*a]", "*a",
    "<<: {steps: 1}", "2001-99-99", "1e999", "1" * 5000, "0x", ".inf", ".nan", "inf", "nan", "null", "~", "---",
    "[" * 300, "{" * 300, "a." * 300 + "a = 1", "[[x]]", "'''", '"""', "\\uD800", "\\U00110000", "\x1b[2J", "\u202e",
    "<script>", "{text:999999999}", "{text!r}", "{text.__class__}{label}", "steps = 3\nsteps = 4", "reward = 'id'",
    "reward: id", "\t", "\x00", "\ufeff", '"', ",", ",,,,", '"a\n', "\r", "\u2028",
)  # fmt: skip
"""Words that a careless reader trips over."""


def mutate_text(content: bytes, choices: Choices) -> bytes:
    """Change one thing in a text: a line, a value, a word, or its bytes."""
    how = choices.below(6)
    lines = content.split(b"\n")
    place = choices.below(len(lines))
    word = choices.one(WORDS).encode()
    if how == 0:
        return mutate_bytes(content, choices)
    if how == 1:
        lines[place] = choices.one(lines)
    elif how == 2:
        lines.insert(place, word)
    elif how == 3:
        del lines[place]
    else:
        mark = next((each for each in (b"=", b":", b",") if each in lines[place]), b"")
        key, found, _ = lines[place].partition(mark) if mark else (lines[place], b"", b"")
        lines[place] = key + found + b" " + word
    return b"\n".join(lines)
