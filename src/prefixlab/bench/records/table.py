"""Records as columns: the form in which a million of them are read and summed up in seconds.

Owns the columns. A row is a record; arrivals of all rows lie in one flat column, row i's at
`arrivals_s[arrival_start[i] : arrival_start[i + 1]]` (and `counts` beside them).

Invariant: `RecordTable.of(records).to_records() == records`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from prefixlab.bench.records.record import Record

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class RecordTable:
    """See the module. Shape (n,) unless said otherwise. A time that was not is NaN, a count nobody named -1.

    Attributes:
        outcome: shape (n,), uint8, index into `tuple(Outcome)`.
        arrival_start: shape (n + 1,), int64.
        arrivals_s, counts: shape (arrival_start[-1],), float64 and int64.
    """

    request_id: Sequence[str]
    outcome: npt.NDArray[np.uint8]
    segment: IntArray
    intended_s: FloatArray
    sent_s: FloatArray
    connect_started_s: FloatArray
    connected_s: FloatArray
    first_byte_s: FloatArray
    first_content_s: FloatArray
    last_s: FloatArray
    arrival_start: IntArray
    arrivals_s: FloatArray
    counts: IntArray
    planned_prompt_tokens: IntArray
    planned_output_tokens: IntArray
    num_prompt_tokens: IntArray
    num_expected_cached_tokens: IntArray
    num_cached_tokens: IntArray
    num_reasoning_tokens: IntArray
    # (and the rest of Record's fields: the owner of this file completes it)

    @classmethod
    def of(cls, records: Iterable[Record]) -> RecordTable:
        raise NotImplementedError

    @classmethod
    def read(cls, paths: Sequence[Path]) -> RecordTable:
        """From files of lines; a torn last line of a file is left out, as of a request that did not end.

        Raises:
            ConfigError: a line that is not a record; it names file and line.
        """
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.outcome)

    def to_records(self) -> list[Record]:
        raise NotImplementedError
