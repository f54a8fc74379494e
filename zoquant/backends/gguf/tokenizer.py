"""The file's tokenizer, built by transformers' converter from metadata that is parsed already."""

from collections.abc import Callable, Mapping
from typing import Any

from zoquant.backends.gguf.header import Header
from zoquant.errors import CheckpointError

_FIELDS: Mapping[str, str] = {
    "tokenizer_type": "ggml.model",
    "pre_tokenizer_type": "ggml.pre",
    "tokens": "ggml.tokens",
    "scores": "ggml.scores",
    "token_type": "ggml.token_type",
    "merges": "ggml.merges",
    "bos_token_id": "ggml.bos_token_id",
    "eos_token_id": "ggml.eos_token_id",
    "unk_token_id": "ggml.unknown_token_id",
    "pad_token_id": "ggml.padding_token_id",
    "add_prefix_space": "ggml.add_space_prefix",
}
_SPECIAL = {f"{name}_token": f"{name}_token_id" for name in ("bos", "eos", "unk", "pad")}
_LLAMA3 = ("llama3", "llama-v3", "llama-bpe")


class _Tokens(list[str]):
    """A list that knows its members: transformers before 5 asks `piece in tokens` for every split of every token."""

    def __init__(self, tokens: list[str]) -> None:
        super().__init__(tokens)
        self._members = frozenset(tokens)

    def __contains__(self, token: object) -> bool:
        return token in self._members


def build_tokenizer(header: Header) -> Any:
    """Return the tokenizer of a file, or None if it has none.

    Raises:
        CheckpointError: the file's tokenizer contradicts itself, or is of a kind that transformers does not know.
    """
    if "tokenizer.ggml.tokens" not in header.metadata:
        return None
    try:
        return _build(header)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{header.path}: keys 'tokenizer.ggml.*': transformers cannot build a tokenizer from them: {error!r}. "
            "Update transformers, or convert the checkpoint again."
        ) from error


def _build(header: Header) -> Any:
    from tokenizers.decoders import ByteLevel
    from transformers import PreTrainedTokenizerFast

    fields = _fields(header)
    special = _special_tokens(header, fields)
    tokenizer, extra = _converter()(header.architecture, fields)
    if fields.get("tokenizer_type") == "gpt2":
        tokenizer.decoder = ByteLevel()  # transformers 4 takes that of SentencePiece, which drops a leading space
    bos, eos = _adds(header, fields, "bos"), _adds(header, fields, "eos")
    _frame(tokenizer, special["bos_token"] if bos else None, special["eos_token"] if eos else None)
    settings = {**extra, **special, "add_bos_token": bos, "add_eos_token": eos, "clean_up_tokenization_spaces": False}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=header.metadata.get("tokenizer.chat_template"),
        model_input_names=["input_ids", "attention_mask"],
        **settings,
    )


def _converter() -> Callable[[str, dict[str, Any]], tuple[Any, dict[str, Any]]]:
    """Return transformers' converter: in `integrations.gguf` since 5.23, in `integrations.ggml` before."""
    try:
        from transformers.integrations.gguf import convert_gguf_tokenizer
    except ImportError:
        from transformers.integrations.ggml import convert_gguf_tokenizer
    converter: Callable[[str, dict[str, Any]], tuple[Any, dict[str, Any]]] = convert_gguf_tokenizer
    return converter


def _fields(header: Header) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, key in _FIELDS.items():
        value = header.metadata.get(f"tokenizer.{key}")
        if value is not None:
            fields[name] = list(value) if name in ("scores", "token_type") else value
    fields["tokens"] = _Tokens(fields["tokens"])
    return fields


def _special_tokens(header: Header, fields: Mapping[str, Any]) -> dict[str, str | None]:
    special: dict[str, str | None] = {}
    for name, key in _SPECIAL.items():
        number = fields.get(key)
        if number is not None and not (isinstance(number, int) and 0 <= number < len(fields["tokens"])):
            raise CheckpointError(
                f"{header.path}: key 'tokenizer.{_FIELDS[key]}': expected the number of one of "
                f"{len(fields['tokens'])} tokens, got {number!r}. Convert the checkpoint again."
            )
        special[name] = None if number is None else fields["tokens"][number]
    return special


def _adds(header: Header, fields: Mapping[str, Any], which: str) -> bool:
    """Tell whether the text gets a first or last token. Files that do not say are read as llama.cpp reads them."""
    said = header.metadata.get(f"tokenizer.ggml.add_{which}_token")
    if said is not None:
        return bool(said)
    return which == "bos" and (fields.get("tokenizer_type") == "llama" or fields.get("pre_tokenizer_type") in _LLAMA3)


def _frame(tokenizer: Any, bos: str | None, eos: str | None) -> None:
    """Let the tokenizer put these tokens around every text."""
    if bos is None and eos is None:
        return
    from tokenizers.processors import TemplateProcessing

    first, last = ([bos] if bos else []), ([eos] if eos else [])
    tokens = [(token, tokenizer.token_to_id(token)) for token in dict.fromkeys([*first, *last])]
    second = [*(f"{token}:1" for token in first), "$B:1", *(f"{token}:1" for token in last)]
    tokenizer.post_processor = TemplateProcessing(
        single=[*first, "$A", *last], pair=[*first, "$A", *last, *second], special_tokens=tokens
    )
