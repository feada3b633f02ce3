"""Alibaba Bailian's format: the anonymised usage traces of Qwen. Times in seconds, blocks of 16 tokens.

    {"chat_id": 159, "parent_chat_id": 55, "timestamp": 61.114, "input_length": 521, "output_length": 132,
     "type": "text", "turn": 2, "hash_ids": [1089, 1090, 1091, 6326]}

A session is a chain from parent to child. A parent whose second child comes (somebody asked again) has one
chain that goes on and another that begins; so does a child whose parent the file does not have. `turn` counts
from the true beginning and `type` tells kinds of requests apart: neither is needed to ask the same again.

Invariant: every session is one chain, its turns numbered from 0 as the file has them.
"""

from __future__ import annotations

import math

import msgspec

from prefixlab.bench.traces.formats.columns import Columns, time_goes_back
from prefixlab.bench.traces.formats.format import Asked, Format
from prefixlab.bench.traces.formats.jsonl import rows
from prefixlab.bench.traces.formats.source import Source
from prefixlab.bench.traces.trace import Trace

BLOCK_SIZE = 16


class BailianLine(msgspec.Struct, forbid_unknown_fields=True):
    """A request; `parent_chat_id` is -1 where it begins a conversation."""

    chat_id: int | str
    parent_chat_id: int | str | None
    timestamp: float | int
    input_length: int
    output_length: int
    hash_ids: list[int]
    type: str | None = None
    turn: int | None = None


def read(source: Source, asked: Asked) -> Trace:
    columns = Columns()
    ends: dict[int | str, tuple[str, int]] = {}  # chats that nothing continues yet: session and turn
    before_s = -math.inf
    for number, line in rows(source, FORMAT, BailianLine, asked):
        if line.timestamp < before_s and not asked.sort:
            raise time_goes_back(source, number, line.timestamp, before_s)
        before_s = line.timestamp
        columns.add(source, number, before_s, line.input_length, line.output_length, line.hash_ids)
        parent = None if line.parent_chat_id is None else ends.pop(line.parent_chat_id, None)
        session_id, turn = (str(line.chat_id), 0) if parent is None else (parent[0], parent[1] + 1)
        ends[line.chat_id] = (session_id, turn)
        columns.add_turn(session_id, turn, math.nan)
        if not asked.sort and len(columns) == asked.num_requests:
            break
    return columns.trace(source, asked, block_size=BLOCK_SIZE)


FORMAT = Format(
    name="bailian",
    title="Bailian's format",
    is_csv=False,
    required=("chat_id", "parent_chat_id", "timestamp", "input_length", "output_length", "hash_ids"),
    optional=("type", "turn"),
    read=read,
)
