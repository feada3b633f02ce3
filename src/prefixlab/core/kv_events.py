"""KV events: what a worker's cache stored and removed, in the wire format of vLLM and SGLang.

Owns the structs and their encoding. `server/kv_publisher.py` puts them on ZeroMQ; the router folds them.
A batch is an array `[ts, events, data_parallel_rank]`; each event is a tagged map with defaults left out
(SGLang) and decodes from a tagged array too (vLLM), so either peer can be read.

Invariant: an event names pages by `block_hash.event_hash`; a child's parent was stored before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

MEDIUM_DEVICE = "GPU"
MEDIUM_HOST = "CPU_PINNED"
MEDIUM_STORAGE = "EXTERNAL"


class BlockStored(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=True):
    """Pages entered a tier. `token_ids` holds all pages' tokens in order, `block_size` to a page."""

    block_hashes: list[int]
    parent_block_hash: int | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None = None
    medium: str | None = None
    cache_salt: str | None = None
    session_id: str | None = None
    lora_name: str | None = None
    extra_key: str | None = None


class BlockRemoved(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=True):
    """Pages left a tier."""

    block_hashes: list[int]
    medium: str | None = None


class AllBlocksCleared(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=True):
    """Every page of every tier in memory left (start, reset, flush)."""


KVEvent = BlockStored | BlockRemoved | AllBlocksCleared


class EventBatch(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """Events that happened together. `ts` is seconds since the Unix epoch."""

    ts: float
    events: list[KVEvent]
    attn_dp_rank: int | None = None


_ENCODER = msgspec.msgpack.Encoder()
_ARRAY_FIELDS: dict[str, tuple[str, ...]] = {
    "BlockStored": (
        "block_hashes",
        "parent_block_hash",
        "token_ids",
        "block_size",
        "lora_id",
        "medium",
        "lora_name",
    ),
    "BlockRemoved": ("block_hashes", "medium"),
    "AllBlocksCleared": (),
}


def encode_batch(batch: EventBatch) -> bytes:
    """MessagePack of a batch, as subscribers of SGLang and vLLM expect it."""
    return _ENCODER.encode(batch)


def decode_batch(payload: bytes) -> EventBatch:
    """Read a batch whose events are tagged maps or tagged arrays; fields we do not know are ignored.

    Raises:
        msgspec.ValidationError: not an event batch, or an event of a type nobody defined.
        msgspec.DecodeError: not MessagePack.
    """
    raw: Any = msgspec.msgpack.decode(payload)
    if not isinstance(raw, list) or len(raw) < 2 or not isinstance(raw[1], list):
        raise msgspec.ValidationError("an event batch is an array [ts, events, rank]")
    rank = raw[2] if len(raw) > 2 else None
    return EventBatch(
        ts=msgspec.convert(raw[0], float, strict=False),
        events=[_event(item) for item in raw[1]],
        attn_dp_rank=msgspec.convert(rank, int | None),
    )


def _event(item: Any) -> KVEvent:
    if isinstance(item, Sequence) and not isinstance(item, str | bytes) and item and item[0] in _ARRAY_FIELDS:
        item = {"type": item[0], **dict(zip(_ARRAY_FIELDS[item[0]], item[1:], strict=False))}
    event: KVEvent = msgspec.convert(item, KVEvent)
    return event
