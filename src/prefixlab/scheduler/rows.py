"""The running requests as arrays, one entry per row of the page table: a decode step is a few array
operations however many requests run.

Owns which row is whose, and per row how far its request is and where it must stop. For a running request
these arrays are the truth: `Request.num_computed_tokens` is written back when the row is given up. Owns no
pages.

Invariant: `num_computed < num_tokens < end_at` for every row between steps; a free row is empty.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from prefixlab.core.batch import BoolArray, IntArray
from prefixlab.core.request import Request
from prefixlab.scheduler.admission import is_length_certain

NO_TOKEN = -1


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """The requests that decode, as a Batch wants them. Made once per change of the set, then shared by every
    batch until the next: nobody changes its arrays."""

    requests: list[Request]
    rows: IntArray
    lengths: IntArray
    samples: BoolArray


NO_DECODE = DecodeGroup(
    [], np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.bool_)
)


class RunningRows:
    """See the module. `take` and `give_back` pair up; `join_decode` comes between them."""

    def __init__(self, max_rows: int) -> None:
        self.num_computed = np.zeros(max_rows, dtype=np.int32)
        self.num_tokens = np.zeros(max_rows, dtype=np.int32)
        self.end_at = np.zeros(max_rows, dtype=np.int32)
        """`num_tokens` at which the request ends by length."""
        self.last_token = np.zeros(max_rows, dtype=np.int32)
        self.length_is_certain = np.zeros(max_rows, dtype=np.bool_)
        """Nothing can end it before `end_at`."""
        self._stops_from = np.zeros(max_rows, dtype=np.int32)  # `num_tokens` from which a stop id counts
        # One column per stop id of the request that has most; NO_TOKEN, which is never sampled, elsewhere.
        self._stop_ids = np.full((max_rows, 1), NO_TOKEN, dtype=np.int32)
        self._num_rows_with_stops = 0

        self._requests: dict[str, Request] = {}
        self._decoding: dict[int, Request] = {}
        self._free_rows = list(range(max_rows - 1, -1, -1))
        self._group: DecodeGroup | None = None

    def __len__(self) -> int:
        return len(self._requests)

    def requests(self) -> list[Request]:
        """Every request that has a row, in the order they got it."""
        return list(self._requests.values())

    @property
    def is_full(self) -> bool:
        return not self._free_rows

    # A request's way through its row: next_free → take → join_decode → give_back. ---------------------

    def next_free(self) -> int:
        """The row that the next `take` is for."""
        return self._free_rows[-1]

    def take(self, request: Request) -> None:
        """`request` was admitted to `next_free()`: fill in its entries."""
        row = self._free_rows.pop()
        assert request.row == row, "admitted to another row than the next free one"
        sampling = request.sampling
        stop_ids = request.stop_token_ids
        self.num_computed[row] = request.num_computed_tokens
        self.num_tokens[row] = request.num_tokens
        self.end_at[row] = request.num_prompt_tokens + sampling.max_new_tokens
        self.length_is_certain[row] = is_length_certain(request)
        if stop_ids:
            self._stops_from[row] = request.num_prompt_tokens + sampling.min_new_tokens
            self._widen_stop_ids(len(stop_ids))
            self._stop_ids[row, : len(stop_ids)] = list(stop_ids)
            self._num_rows_with_stops += 1
        self._requests[request.request_id] = request

    def join_decode(self, request: Request) -> None:
        """All its known tokens are computed and it has a next one: from now on it decodes."""
        self._decoding[request.row] = request
        self._group = None

    def give_back(self, request: Request, row: int) -> None:
        """`request` gave up `row`; its progress is written back to it."""
        del self._requests[request.request_id]
        request.num_computed_tokens = int(self.num_computed[row])
        if self._decoding.pop(row, None) is not None:
            self._group = None
        self._num_rows_with_stops -= bool(request.stop_token_ids)
        for column in (self.num_computed, self.num_tokens, self.end_at, self.last_token, self._stops_from):
            column[row] = 0
        self.length_is_certain[row] = False
        self._stop_ids[row] = NO_TOKEN
        self._free_rows.append(row)

    def _widen_stop_ids(self, width: int) -> None:
        num_missing = width - self._stop_ids.shape[1]
        if num_missing > 0:
            self._stop_ids = np.pad(self._stop_ids, ((0, 0), (0, num_missing)), constant_values=NO_TOKEN)

    # Whole steps at once. -----------------------------------------------------------------------------

    def decode_group(self) -> DecodeGroup:
        """The requests that decode, in the order they joined."""
        if self._group is None:
            size = len(self._decoding)
            self._group = DecodeGroup(
                requests=list(self._decoding.values()),
                rows=np.fromiter(self._decoding, dtype=np.int32, count=size),
                lengths=np.ones(size, dtype=np.int32),
                samples=np.ones(size, dtype=np.bool_),
            )
        return self._group

    def append_tokens(self, rows: IntArray, token_ids: IntArray) -> tuple[IntArray, BoolArray]:
        """Each of `rows` got its next token.

        Returns:
            Which entries of `rows` end with it, ascending; and for each entry whether a stop id is why.
        """
        num_tokens = self.num_tokens[rows] + 1
        self.num_tokens[rows] = num_tokens
        self.last_token[rows] = token_ids
        ends = num_tokens >= self.end_at[rows]
        if self._num_rows_with_stops:
            stops = (self._stop_ids[rows] == token_ids[:, None]).any(axis=1)
            stops &= num_tokens >= self._stops_from[rows]
            ends |= stops
        else:
            stops = np.zeros(len(rows), dtype=np.bool_)
        return np.flatnonzero(ends).astype(np.int32), stops

    def check(self, live: Iterable[Request], partial: Request | None, *, is_between_steps: bool) -> None:
        """Prove the module's invariant against the requests themselves. AssertionError where it fails."""
        running = {request.request_id: request for request in live if request.row >= 0}
        assert running == self._requests, "not exactly the requests with a row are known"
        used = [request.row for request in running.values()]
        assert sorted(self._free_rows + used) == list(range(len(self.num_tokens))), "a row is lost or shared"
        assert not self.num_tokens[self._free_rows].any(), "a free row is not empty"
        num_with_stops = sum(bool(request.stop_token_ids) for request in running.values())
        assert num_with_stops == self._num_rows_with_stops, "rows with stop ids are miscounted"
        for request in running.values():
            row = request.row
            assert self.num_tokens[row] == request.num_tokens, f"{request}: num_tokens"
            assert self.num_computed[row] < request.num_tokens < self.end_at[row], f"{request}: progress"
            if row in self._decoding:
                assert self._decoding[row] is request is not partial, f"{request}: decodes in another's row"
                assert self.num_computed[row] == request.num_tokens - 1, f"{request}: decodes too early"
                assert self.last_token[row] == request.output_token_ids[-1], f"{request}: last token"
            elif is_between_steps:
                assert request is partial, f"{request} neither decodes nor has a prompt in progress"
