"""A driver without sockets or waiting: requests take virtual time, and can be interrupted or killed."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from prefixlab.bench.loadgen.driver import Drive, OnProgress
from prefixlab.bench.loadgen.health import ClientHealth
from prefixlab.bench.loadgen.plan import Load, Planned
from prefixlab.bench.records.line import encode
from prefixlab.bench.records.record import Failure, Outcome, Record
from prefixlab.bench.records.table import RecordTable


class Killed(BaseException):
    """The whole process would be gone here."""


@dataclass
class VirtualDriver:
    """Implements `loadgen.driver.Driver`. Every token takes `token_s`.

    Attributes:
        stop_after: requests of the next run that end; the rest are cancelled or unsent, as at Ctrl-C.
        die_after: requests of the next run whose lines are written before the process is killed.
        failure: what those that are `failing` run into.
        hanging: requests of a run that is killed which do not end before it.
        kernel_stamps: what records say of their times.
        num_cached_tokens: what every answer reports.
        tokens_per_word: the server counts so many for each token planned.
        runs: the plans it was given, with their loads.
    """

    token_s: float = 0.01
    failing: frozenset[str] = frozenset()
    failure: Failure = Failure.RESET
    hanging: frozenset[str] = frozenset()
    kernel_stamps: bool = False
    num_cached_tokens: int = 0
    tokens_per_word: int = 1
    stop_after: int | None = None
    die_after: int | None = None
    runs: list[tuple[list[Planned], Load]] = field(default_factory=list)

    def run(
        self,
        plan: Iterable[Planned],
        load: Load,
        *,
        on_progress: OnProgress | None = None,
        folder: Path | None = None,
    ) -> Drive:
        planned = list(plan)
        self.runs.append((planned, load))
        stop_after, self.stop_after = self.stop_after, None
        die_after, self.die_after = self.die_after, None
        records = self._play(planned, load)
        if stop_after is not None:
            gone = [
                replace_as_unsent(p) for p in planned if p.request.request_id not in ids(records[:stop_after])
            ]
            records = records[:stop_after] + gone
        if folder is not None:
            assert not list(folder.iterdir()), "a driver is given an empty folder"
            ended = [r for r in records if die_after is None or r.request_id not in self.hanging]
            lines = [encode(record) for record in ended[:die_after]]
            (folder / "records-0.jsonl").write_bytes(b"".join(lines))
        if die_after is not None:
            raise Killed
        last_s = max((record.last_s or 0.0 for record in records), default=0.0)
        health = ClientHealth(stamps="target", peak_in_flight=load.max_concurrency or len(planned))
        return Drive(RecordTable.of(records), last_s, health, stop_after is not None)

    def _play(self, planned: list[Planned], load: Load) -> list[Record]:
        free = [0.0] * (load.max_concurrency or max(1, len(planned)))
        records = []
        for one in planned:
            slot_s = heapq.heappop(free)
            intended_s = one.offset_s if load.open_loop else slot_s
            sent_s = max(intended_s, slot_s)
            if load.stop_after_s is not None and sent_s > load.stop_after_s:
                heapq.heappush(free, slot_s)
                records.append(one.unsent(intended_s))
                continue
            count = one.request.max_new_tokens
            arrivals = tuple(sent_s + self.token_s * (n + 1) for n in range(count))
            heapq.heappush(free, arrivals[-1])
            records.append(self._record(one, intended_s, sent_s, arrivals))
        return sorted(records, key=lambda record: record.last_s or record.intended_s)

    def _record(self, one: Planned, intended_s: float, sent_s: float, arrivals: tuple[float, ...]) -> Record:
        failed = one.request.request_id in self.failing
        return replace(
            one.unsent(intended_s),
            outcome=Outcome.FAILED if failed else Outcome.OK,
            sent_s=sent_s,
            first_byte_s=arrivals[0],
            arrivals_s=() if failed else arrivals,
            arrival_counts=() if failed else (1,) * len(arrivals),
            last_s=arrivals[-1],
            num_prompt_tokens=one.num_prompt_tokens * self.tokens_per_word,
            num_cached_tokens=self.num_cached_tokens,
            failure=self.failure if failed else None,
            error="it broke" if failed else None,
            kernel_stamps=self.kernel_stamps,
        )


def replace_as_unsent(planned: Planned) -> Record:
    return planned.unsent(planned.offset_s)


def ids(records: list[Record]) -> set[str]:
    return {record.request_id for record in records}
