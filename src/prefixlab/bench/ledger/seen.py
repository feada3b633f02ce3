"""What was seen of the servers from the side: their counters and their KV events. Plain data.

Owns those figures, and putting those of several stretches together. Judges nothing.

Invariant: of a stretch that nobody watched to its end nothing is known, and then nothing of their sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import msgspec
import numpy as np

from prefixlab.bench.ledger.counters import ServerCounts
from prefixlab.bench.records.table import RecordTable


@dataclass(frozen=True, slots=True)
class EventCounts:
    """KV events of a stretch, all publishers together.

    Attributes:
        num_stored, num_removed: blocks that entered a tier, or left one.
        num_evicted: blocks that left the last tier that held them.
        num_stored_again: blocks that were computed anew after they had been evicted within the stretch.
        num_cleared: times that everything was dropped at once.
        num_lost: batches missing from the sequence of numbers.
        num_unread: batches that could not be read.
    """

    num_batches: int = 0
    num_stored: int = 0
    num_removed: int = 0
    num_evicted: int = 0
    num_stored_again: int = 0
    num_cleared: int = 0
    num_lost: int = 0
    num_unread: int = 0

    @property
    def is_whole(self) -> bool:
        """All that was sent was read: what is not among them did not happen."""
        return self.num_batches > 0 and not (self.num_lost or self.num_unread)

    @classmethod
    def sum(cls, parts: Sequence[EventCounts]) -> EventCounts:
        names = [field.name for field in fields(cls)]
        return cls(**{name: sum(getattr(part, name) for part in parts) for name in names})


@dataclass(frozen=True, slots=True)
class Seen:
    """See the module. None: not known.

    Attributes:
        sent_tokens: of all prompts that went out in the watched stretches, every attempt counted: the most
            that we can have made the servers count.
    """

    counts: ServerCounts | None = None
    events: EventCounts | None = None
    sent_tokens: int | None = None

    @classmethod
    def sum(cls, stretches: Sequence[Seen]) -> Seen:
        counts = [seen.counts for seen in stretches if seen.counts is not None]
        events = [seen.events for seen in stretches if seen.events is not None]
        sent = [seen.sent_tokens for seen in stretches if seen.sent_tokens is not None]
        whole = len(stretches)
        return cls(
            ServerCounts.sum(counts) if whole and len(counts) == whole else None,
            EventCounts.sum(events) if whole and len(events) == whole else None,
            sum(sent) if whole and len(sent) == whole else None,
        )

    def keys(self) -> dict[str, Any]:
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found

    @classmethod
    def of_keys(cls, keys: object) -> Seen:
        """What `keys` gave; nothing seen where it is not that."""
        try:
            return msgspec.convert(keys, cls)
        except msgspec.ValidationError:
            return cls()


def sent_tokens(table: RecordTable) -> int | None:
    """Of one stretch's records, see Seen; None where the length of one is not known."""
    sent = ~np.isnan(table.sent_s)
    lengths = table.prompt_tokens[sent]
    if not (lengths > 0).all():
        return None
    attempts = 1 + np.maximum(table.num_retries[sent], 0)
    return int((np.maximum(lengths, table.planned_prompt_tokens[sent]) * attempts).sum())
