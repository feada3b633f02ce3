"""Conversations of a file held again: what its users said, turn by turn, the server's own answers between.

Owns which turns those are: a human's of ShareGPT, a user's of OpenAI's messages, with the system message
before the first. Recorded answers are read over: the server gives its own.

Invariant: every turn of a conversation is asked, in its order; one without any is named and left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from prefixlab.bench.report.console import counted
from prefixlab.bench.workloads.files.custom import Row
from prefixlab.bench.workloads.files.messages import read_messages
from prefixlab.bench.workloads.files.sharegpt import read_conversations
from prefixlab.bench.workloads.generators.sessions import ThinkTime
from prefixlab.bench.workloads.sketch import NOBODY, Sketches
from prefixlab.bench.workloads.workload import Workload
from prefixlab.core.errors import ConfigError

Message = dict[str, Any]
Turns = list[tuple[Message, ...]]
"""New messages of each turn, a user's last."""


def holds_conversations(path: Path) -> bool:
    """Whether the file has conversations in words, not a trace; False where it cannot be read as either."""
    try:
        with path.open("rb") as file:
            begin = file.read(1)
            while begin.isspace():
                begin = file.read(1)
            if begin == b"[":
                return True
            fields = msgspec.json.decode(begin + file.readline(), type=dict[str, msgspec.Raw])
    except (OSError, msgspec.DecodeError):
        return False
    return not fields.keys().isdisjoint({"conversations", "conversation", "messages"})


def read_talks(path: Path) -> Iterator[Turns]:
    """Of each conversation its turns, perhaps none.

    Raises:
        ConfigError: the file, or a conversation of it, cannot be used; it names both.
    """
    if not _is_openai(path):
        for conversation in read_conversations(path):
            yield [({"role": "user", "content": said},) for said, _ in conversation.turns]
        return
    rows, _ = read_messages(path, None, None, None)
    for row in rows:
        assert row.messages is not None, "a row of messages"
        yield _turns(row.messages)


def _is_openai(path: Path) -> bool:
    with path.open("rb") as file:
        first = next((line for line in file if line.strip()), b"")
    return b'"messages"' in first and not first.lstrip().startswith(b"[")


def _turns(messages: Sequence[Message]) -> Turns:
    turns: Turns = []
    new: list[Message] = []
    for message in messages:
        if message["role"] == "assistant":
            continue
        new.append(message)
        if message["role"] == "user":
            turns.append(tuple(new))
            new = []
    return turns


def talks_workload(
    path: Path,
    output_len: int,
    think: ThinkTime,
    *key: int,
    num_sessions: int | None = None,
    num_turns: int | None = None,
) -> Workload:
    """The first so many conversations, the first so many turns of each; None: all.

    Args:
        output_len: tokens of each answer.
        think: before each later turn.
        key: whole numbers ≥ 0 that think times depend on.

    Raises:
        ConfigError: the file cannot be used.
    """
    found = [turns[:num_turns] for turns in read_talks(path)]
    talks = [turns for turns in found if turns][:num_sessions]
    if not talks:
        raise ConfigError(f"--dataset-path {path} holds no conversation in which a user says something")
    rows = [Row(output_len, messages=new) for turns in talks for new in turns]
    turn = np.array([number for turns in talks for number in range(len(turns))])
    is_first = turn == 0
    places = np.arange(len(rows))
    sketches = Sketches.of(
        [[(-1 - int(place), 1)] for place in places],
        [output_len] * len(rows),
        after=np.where(is_first, NOBODY, places - 1),
        delays_s=np.where(is_first, 0.0, think.draw(len(rows), *key)),
        continues=~is_first,
        session_ids=[f"session-{number}" for number, turns in enumerate(talks) for _ in turns],
        turns=turn,
    )
    notes = [
        f"{counted(len(talks), 'conversation')} of {path}, {counted(len(rows), 'turn')}: what users said "
        f"there, and the server's own answers between, of {output_len:,} tokens at most",
        *([f"think time of {think} before each later turn"] if think.mean_s else []),
    ]
    if silent := sum(not turns for turns in found):
        notes.append(f"{counted(silent, 'conversation')} left out, in which no user says anything")
    flags = "the file's prompts, --num-turns and --turn-output-len"
    return Workload(sketches, rows, tuple(notes), flags, counted=False)
