"""Prompts from a file: JSON lines with a prompt (vLLM's custom format) or with a conversation (OpenAI's).

Owns reading and choosing rows. Adds nothing to what a row says, but a chat template where that is asked for.

Invariant: rows are repeated only where there are fewer than requests, and then evenly.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from prefixlab.bench.config.dataset import DEFAULT_CUSTOM_OUTPUT_LEN, FROM_FILE, DatasetConfig
from prefixlab.core.block_hash import TokenIds, as_token_ids
from prefixlab.core.errors import ConfigError
from prefixlab.core.seams import Tokenizer


class _Line(msgspec.Struct):
    """What is read of a line; other fields are the file's own business."""

    prompt: str | list[int] | None = None
    messages: list[dict[str, Any]] | None = None
    output_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One request's content: exactly one of text, token ids and messages."""

    num_output_tokens: int
    text: str | None = None
    token_ids: tuple[int, ...] | TokenIds | None = None
    messages: tuple[dict[str, Any], ...] | None = None


def read_rows(path: Path, output_len: int | None) -> list[Row]:
    """All rows of a file.

    Args:
        output_len: as `--custom-output-len` says.

    Raises:
        ConfigError: the file, or a line of it, cannot be used; it names both.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"--dataset-path {path} cannot be read: {error.strerror}") from None
    rows = [
        _row(text, f"--dataset-path {path}, line {number}", output_len)
        for number, text in enumerate(lines, start=1)
        if text.strip()
    ]
    if not rows:
        raise ConfigError(f"--dataset-path {path} holds no row")
    return rows


def _row(text: bytes, place: str, output_len: int | None) -> Row:
    try:
        line = msgspec.json.decode(text, type=_Line)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{place}: {_what_is_wrong(error)}") from None
    if (line.prompt is None) == (line.messages is None):
        raise ConfigError(f'{place}: one of "prompt" and "messages" must be there')
    if not (line.prompt or line.messages):
        raise ConfigError(f"{place}: there is nothing to ask")
    asked = line.output_tokens if output_len in (None, FROM_FILE) else output_len
    if asked is None and output_len == FROM_FILE:
        raise ConfigError(f"{place} has no output_tokens, and --custom-output-len {FROM_FILE} asks for them")
    asked = DEFAULT_CUSTOM_OUTPUT_LEN if asked is None else asked
    if asked < 1:
        raise ConfigError(f"{place}: output_tokens must be at least 1, not {asked}")
    if isinstance(line.prompt, list):
        return Row(asked, token_ids=tuple(line.prompt))
    return Row(asked, text=line.prompt, messages=tuple(line.messages) if line.messages else None)


def _what_is_wrong(error: msgspec.DecodeError) -> str:
    """In the words of a reader of the file. The message of a ValidationError ends in the field's path."""
    if not isinstance(error, msgspec.ValidationError):
        return "that is no JSON"
    named = re.search(r"\$\.(\w+)", str(error))
    if named is None:
        return 'that is no JSON object with "prompt" or "messages"'
    kinds = {
        "prompt": "text, or a list of token ids",
        "messages": "a list of messages",
        "output_tokens": "a whole number",
    }
    return f'"{named[1]}" must be {kinds[named[1]]}'


def choose_rows(rows: Sequence[Row], config: DatasetConfig) -> list[Row]:
    """As many rows as asked for, in the order asked for.

    Raises:
        ConfigError: there are too few, and none may be repeated.
    """
    order = list(rows)
    if config.shuffle:
        random.Random(config.seed).shuffle(order)
    wanted = len(order) if config.num_prompts is None else config.num_prompts
    if wanted > len(order) and not config.oversample:
        raise ConfigError(
            f"--num-prompts {wanted}: {config.dataset_path} has {len(order)} rows, "
            "and --no-oversample repeats none"
        )
    order = order * -(-wanted // len(order))
    return order[:wanted]


@dataclass(frozen=True, slots=True)
class Content:
    """A row as an API takes it.

    Attributes:
        known: the tokens that the server makes of it, shape (n,); None where nobody knows before it says.
    """

    known: TokenIds | None
    text: str | None = None
    token_ids: TokenIds | None = None
    messages: tuple[dict[str, Any], ...] | None = None

    @property
    def num_tokens(self) -> int:
        """0 where nobody knows."""
        return 0 if self.known is None else len(self.known)


def content_of(row: Row, *, chat: bool, template: bool, tokenizer: Tokenizer | None) -> Content:
    """What is sent of a row.

    Args:
        chat: the API takes messages; else a prompt.
        template: put text into the tokenizer's chat template, for an API that has none.

    Raises:
        ConfigError: the API cannot carry it.
    """
    if row.token_ids is not None:
        if chat:
            raise ConfigError("a row holds token ids, and chat takes messages: choose another --backend")
        token_ids = as_token_ids(row.token_ids)
        return Content(token_ids, token_ids=token_ids)
    messages = row.messages or ({"role": "user", "content": row.text},)
    if chat:
        rendered = "" if tokenizer is None else tokenizer.apply_chat_template(messages)
        return Content(_tokens(rendered, tokenizer), messages=messages)
    text = row.text
    if template or text is None:
        if tokenizer is None:
            raise ConfigError(
                "--chat-template needs the model's --tokenizer"
                if template
                else "rows hold conversations, and this API takes a prompt: use --backend openai-chat, or "
                "give --tokenizer for its chat template"
            )
        text = tokenizer.apply_chat_template(messages)
    return Content(_tokens(text, tokenizer), text=text)


def _tokens(text: str, tokenizer: Tokenizer | None) -> TokenIds | None:
    return None if tokenizer is None else as_token_ids(tokenizer.encode(text))
