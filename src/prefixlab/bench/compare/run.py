"""One run as comparisons see it, whoever measured it: records or figures, and what each figure means there.

Owns the words for definitions. The same word names different quantities in different clients, so every
latency and throughput of a run carries its own definition, and two runs are compared in a figure only where
theirs are the same text.

Invariant: what a run does not tell is absent, never made up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prefixlab.bench.compare.figures import LATENCIES, THROUGHPUTS
from prefixlab.bench.records.table import RecordTable


@dataclass(frozen=True, slots=True)
class Definition:
    """Of a latency or a throughput.

    Attributes:
        text: the formula, in few words. Equal texts are equal quantities.
        of_records: it is made from the records here; else only the client's own figures are known.
    """

    text: str
    of_records: bool = True


OURS: Mapping[str, str] = {
    "ttft": "sent to first token, opening a connection not included",
    "tpot": "(last token - first token) / (output tokens - 1), per request",
    "itl": "gap between events / tokens it brought, once per token",
    "e2el": "sent to last token, opening a connection not included",
    "ttft_from_intent": "planned start to first token",
    "e2el_from_intent": "planned start to last token",
    "content_ttft": "sent to first token that is not reasoning",
    **dict.fromkeys(THROUGHPUTS, "amount / (first start to end of the last answer)"),
}
EVENT_GAP = "gap between events, whatever each brought"
FIRST_EVENT = "sent to first event with choices, role or text"
WITH_CONNECT = "from before the connection is opened, a new one each"


def ours(*whats: str) -> dict[str, Definition]:
    """That are made from records, by our formulas."""
    return {what: Definition(OURS[what]) for what in whats}


ALL = (*LATENCIES, *THROUGHPUTS)


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """See the module.

    Attributes:
        source: where it was read, for people.
        client: who measured, with its version if it is told.
        key: what sets this run apart from others of its side, as a sweep names it.
        table: None where only figures are known.
        known: the client's own figures, by key, in the units of the key.
        definitions: of what can be compared, by latency or throughput.
        question: what was asked of the server; where two runs differ in it they answer different questions.
        circumstances: on what, with what; often the very thing that is compared.
        planned, failed: requests.
    """

    source: str
    client: str
    key: Mapping[str, Any]
    table: RecordTable | None
    known: Mapping[str, float]
    definitions: Mapping[str, Definition]
    question: Mapping[str, Any]
    circumstances: Mapping[str, Any]
    open_loop: bool
    planned: int | None
    failed: int | None
    notes: tuple[str, ...] = field(default=())
