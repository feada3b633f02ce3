"""The latencies of each request, and of each token, as columns over a table. The formulas and nothing else.

Owns what is subtracted from what. Pools, rates and judgements are made of these elsewhere in this folder.

Invariant: one value per row, shape (n,), NaN where the request has none; `itl_s` alone has one per token.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from prefixlab.bench.records.table import BoolArray, RecordTable

FloatArray = npt.NDArray[np.float64]


def ttft_s(table: RecordTable) -> FloatArray:
    """First token − sent. Opening a connection is before `sent`, so never inside."""
    return table.first_arrival_s - table.sent_s


def e2e_s(table: RecordTable) -> FloatArray:
    """Last token − sent."""
    return table.last_arrival_s - table.sent_s


def ttft_from_intent_s(table: RecordTable) -> FloatArray:
    return table.first_arrival_s - table.intended_s


def e2e_from_intent_s(table: RecordTable) -> FloatArray:
    return table.last_arrival_s - table.intended_s


def tpot_s(table: RecordTable) -> FloatArray:
    """(Last token − first token) ÷ (output tokens − 1): no value for a single token, or where all came at one
    time (in one read, say), which says nothing of how long each took."""
    later_tokens = (table.num_output_tokens - 1).astype(np.float64)
    later_tokens[(later_tokens < 1) | (table.num_arrivals < 2)] = np.nan
    return (table.last_arrival_s - table.first_arrival_s) / later_tokens


def content_ttft_s(table: RecordTable) -> FloatArray:
    """First token that is not reasoning − sent."""
    return table.first_content_s - table.sent_s


def connect_s(table: RecordTable) -> FloatArray:
    """How long opening a connection took, of the requests for which one was opened."""
    return table.connected_s - table.connect_started_s


def send_lag_s(table: RecordTable) -> FloatArray:
    """Sent − intended, waiting for a slot and for a connection included."""
    return table.sent_s - table.intended_s


def itl_s(table: RecordTable, rows: BoolArray) -> FloatArray:
    """Inter-token latencies of the rows chosen, pooled: the gap before each later chunk, divided by the
    tokens it brought, once for each of them. Shape (tokens after the first chunk of their request,)."""
    if not len(table.arrivals_s):
        return np.empty(0)
    later = np.repeat(rows, table.num_arrivals)
    later[table.arrival_start[:-1][table.num_arrivals > 0]] = False
    gaps = np.diff(table.arrivals_s)[later[1:]]
    counts = table.counts[later]
    if counts.max(initial=1) == 1:
        return gaps
    return np.repeat(gaps / counts, counts)
