"""ShareGPT: a JSON array (or JSON lines) of conversations that people had with a model.

    [{"id": "…", "conversations": [{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}, …]}, …]

Owns reading it, and which conversations are asked: the first thing a human said is the prompt, the reply to
it says how long the output is. Those without either, too short or too long are left out, as vLLM's and
SGLang's clients leave them out. Order and repeats are `custom.py`'s.

Invariant: lengths are a tokenizer's counts or what the flags say, never guessed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from prefixlab.bench.workloads.files.custom import Row
from prefixlab.core.errors import ConfigError
from prefixlab.core.seams import Tokenizer

FEWEST_TOKENS = 4
"""Prompts and outputs of fewer are left out: what both clients call too short."""
TOO_SHORT = f"with fewer than {FEWEST_TOKENS} tokens of prompt or output"
_HUMAN, _MODEL = (
    frozenset({"human", "user"}),
    frozenset({"gpt", "chatgpt", "bing", "bard", "assistant", "model"}),
)


class _Turn(msgspec.Struct):
    value: str
    who: str = msgspec.field(name="from")


class _Entry(msgspec.Struct):
    """What is read of a conversation; other fields are the file's own business."""

    conversations: list[_Turn] = []
    conversation: list[_Turn] = []


@dataclass(frozen=True, slots=True)
class Conversation:
    """What was said, in turns: each what a human said, and the reply, None where there was none."""

    turns: tuple[tuple[str, str | None], ...]


def read_conversations(path: Path) -> Iterator[Conversation]:
    """All of a file, in its order.

    Raises:
        ConfigError: the file, or a conversation of it, cannot be used; it names both.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"--dataset-path {path} cannot be read: {error.strerror}") from None
    for place, entry in _entries(path, data):
        try:
            yield _conversation(msgspec.json.decode(entry, type=_Entry))
        except msgspec.DecodeError as error:
            raise ConfigError(
                f'--dataset-path {path}, {place}: not a conversation of ShareGPT\'s, {{"conversations": '
                f'[{{"from": …, "value": …}}, …]}}: {error}'
            ) from None


def _entries(path: Path, data: bytes) -> Iterator[tuple[str, msgspec.Raw | bytes]]:
    """Where each stands, and its JSON."""
    if data.lstrip()[:1] != b"[":
        for number, line in enumerate(data.splitlines(), 1):
            if line.strip():
                yield f"line {number}", line
        return
    try:
        entries = msgspec.json.decode(data, type=list[msgspec.Raw])
    except msgspec.DecodeError as error:
        raise ConfigError(f"--dataset-path {path} is no JSON: {error}") from None
    for number, entry in enumerate(entries, 1):
        yield f"conversation {number}", entry


def _conversation(entry: _Entry) -> Conversation:
    turns: list[tuple[str, str | None]] = []
    for turn in entry.conversations or entry.conversation:
        if turn.who in _HUMAN:
            turns.append((turn.value, None))
        elif turn.who in _MODEL and turns and turns[-1][1] is None:
            turns[-1] = (turns[-1][0], turn.value)
    return Conversation(tuple(turns))


def read_sharegpt(
    path: Path, tokenizer: Tokenizer | None, output_len: int | None, context_len: int | None
) -> tuple[list[Row], tuple[str, ...]]:
    """The rows that can be asked, and a sentence on those left out, if any.

    Args:
        output_len: of every request; None: as long as the reply was.
        context_len: leave out what has more tokens of prompt and output together.

    Raises:
        ConfigError: see `read_conversations`; lengths are asked for that nobody can count; no row is left.
    """
    conversations = list(read_conversations(path))  # a file that is not there is named first
    if tokenizer is None and (output_len is None or context_len is not None):
        flag = "--sharegpt-context-len" if output_len is not None else "the length of replies"
        raise ConfigError(
            f"{flag} takes a tokenizer to count with: give --tokenizer (a folder with the model's "
            "tokenizer.json, or 'byte' to count bytes)"
            + (", or --sharegpt-output-len for all" if output_len is None else "")
        )
    rows: list[Row] = []
    left_out: Counter[str] = Counter()
    for conversation in conversations:
        why, row = _row(conversation, tokenizer, output_len, context_len)
        left_out[why] += 1
        if row is not None:
            rows.append(row)
    del left_out[""]
    said = ", ".join(f"{count:,} {why}" for why, count in left_out.most_common())
    if not rows:
        raise ConfigError(f"--dataset-path {path} holds no conversation to ask{f': {said}' if said else ''}")
    return rows, (f"conversations left out: {said}",) if said else ()


def _row(
    conversation: Conversation, tokenizer: Tokenizer | None, output_len: int | None, context_len: int | None
) -> tuple[str, Row | None]:
    """Why not, or the row."""
    if not conversation.turns or not conversation.turns[0][0].strip():
        return "in which no human says anything", None
    prompt, reply = conversation.turns[0]
    if reply is None:
        return "without a reply", None
    if tokenizer is None:
        assert output_len is not None, "checked before"
        if len(prompt.encode()) < FEWEST_TOKENS:  # a token is a byte at least
            return TOO_SHORT, None
        return "", Row(output_len, text=prompt)
    num_prompt = len(tokenizer.encode(prompt))
    num_output = output_len if output_len is not None else len(tokenizer.encode(reply))
    if num_prompt < FEWEST_TOKENS or (output_len is None and num_output < FEWEST_TOKENS):
        return TOO_SHORT, None
    if context_len is not None and num_prompt + num_output > context_len:
        return f"longer than {context_len:,} tokens", None
    return "", Row(num_output, text=prompt)
