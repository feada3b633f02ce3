"""Conversations as OpenAI's API takes them, one JSON object a line: SGLang's `openai` data set.

    {"messages": [{"role": "user", "content": "…"}, …], "max_tokens": 64}

Owns reading it. An answer of the assistant's at the end is what was answered then: it is not sent, and says
how long the output is where no `max_tokens` does. Order and repeats are `custom.py`'s.

Invariant: what a line holds is sent, or named as not sent.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from prefixlab.bench.config.dataset import DEFAULT_CUSTOM_OUTPUT_LEN
from prefixlab.bench.workloads.files.custom import Row
from prefixlab.core.errors import ConfigError
from prefixlab.core.seams import Tokenizer

_READ = frozenset({"messages", "max_tokens", "max_completion_tokens"})
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")


class _Line(msgspec.Struct):
    messages: list[dict[str, Any]]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None


def read_messages(
    path: Path, tokenizer: Tokenizer | None, output_len: int | None, context_len: int | None
) -> tuple[list[Row], tuple[str, ...]]:
    """All rows, and sentences on what of the file is not sent.

    Args:
        output_len: of every request; None: as each line says, else as long as its recorded answer, else 256.
        context_len: leave out what has more tokens of prompt and output together.

    Raises:
        ConfigError: the file, or a line of it, cannot be used; it names both.
    """
    if tokenizer is None and context_len is not None:
        raise ConfigError("--sharegpt-context-len takes a tokenizer to count with: give --tokenizer")
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"--dataset-path {path} cannot be read: {error.strerror}") from None
    rows: list[Row] = []
    num_long, others = 0, set[str]()
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        row = _row(text, f"--dataset-path {path}, line {number}", tokenizer, output_len, others)
        if context_len is not None and _num_tokens(row, tokenizer) > context_len:
            num_long += 1
        else:
            rows.append(row)
    if not rows:
        raise ConfigError(f"--dataset-path {path} holds no row" + (" short enough" if num_long else ""))
    notes = [f"conversations left out: {num_long:,} longer than {context_len:,} tokens"] if num_long else []
    if others:
        notes.append(f"fields of the file's lines that are not sent: {', '.join(sorted(others))}")
    return rows, tuple(notes)


def _row(
    text: bytes, place: str, tokenizer: Tokenizer | None, output_len: int | None, others: set[str]
) -> Row:
    try:
        whole = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        line = msgspec.json.decode(text, type=_Line)
    except msgspec.DecodeError as error:
        raise ConfigError(f'{place}: not a JSON object with "messages": {error}') from None
    others |= whole.keys() - _READ
    for message in line.messages:
        if message.get("role") not in _ROLES:
            raise ConfigError(f"{place}: the role of a message is one of {', '.join(_ROLES)}")
    messages, answer = line.messages, None
    if messages and messages[-1]["role"] == "assistant":
        *messages, last = messages
        answer = last.get("content")
    if not messages:
        raise ConfigError(f"{place}: there is nothing to ask")
    told = line.max_completion_tokens if line.max_tokens is None else line.max_tokens
    asked = output_len if output_len is not None else told
    if asked is None and isinstance(answer, str) and answer and tokenizer is not None:
        asked = len(tokenizer.encode(answer))
    asked = DEFAULT_CUSTOM_OUTPUT_LEN if asked is None else asked
    if asked < 1:
        raise ConfigError(f"{place}: max_tokens must be at least 1, not {asked}")
    return Row(asked, messages=tuple(messages))


def _num_tokens(row: Row, tokenizer: Tokenizer | None) -> int:
    assert tokenizer is not None and row.messages is not None, "checked before"
    return len(tokenizer.encode(tokenizer.apply_chat_template(row.messages))) + row.num_output_tokens
