"""The serve run: one point, measured as often as asked. Warm up, start cold if asked, send, keep, judge.

Owns the order of things, and going on where a run stopped. What is sent is `point.py`'s, how it travels the
driver's, what it amounts to `judging.py`'s.

Invariants: warm-up requests share nothing with measured ones; every planned request of every repeat has
exactly one row in the result, whatever happened.
"""

from __future__ import annotations

import contextlib
import itertools
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import msgspec
import numpy as np

from prefixlab.bench.config.serve import ServeConfig
from prefixlab.bench.config.target import IN_PROCESS
from prefixlab.bench.ledger.check import first_failure
from prefixlab.bench.ledger.seen import Seen, sent_tokens
from prefixlab.bench.loadgen.decoding.recover import recover
from prefixlab.bench.loadgen.driver import Drive, Progress
from prefixlab.bench.loadgen.health import ClientHealth, one_after_another
from prefixlab.bench.loadgen.plan import Load, Planned
from prefixlab.bench.metrics.point import PointResult
from prefixlab.bench.records.record import Outcome
from prefixlab.bench.records.run_dir import RunDir, Segment, done_ids, in_vain, settled
from prefixlab.bench.records.table import CODE, RecordTable
from prefixlab.bench.report.console import counted
from prefixlab.bench.runs.checks import check_lengths
from prefixlab.bench.runs.judging import Measured, Stretch, cold_note, judged
from prefixlab.bench.runs.point import Asker, Outline, load_of, rest_of
from prefixlab.bench.runs.sessions import ended_ids, has_sessions, settled_sessions
from prefixlab.bench.targets.cold_start import Coldness
from prefixlab.bench.targets.endpoint import Endpoint
from prefixlab.bench.witness.counters import CounterWatch
from prefixlab.bench.witness.events import EventWatch
from prefixlab.bench.witness.scrape import MetricsScrape
from prefixlab.bench.witness.witness import Witness, watched_by
from prefixlab.bench.workloads.variants import PLAIN, Variant
from prefixlab.core.clock import wall_time_label
from prefixlab.core.errors import TargetError
from prefixlab.core.seams import Tokenizer

MAX_WARM_UP_CONCURRENCY = 16
HEALTH_LOST = "client health of a killed stretch is not known: of it only the records were kept"


class Watcher(Protocol):
    """Watches a run, for the screen."""

    def describe(self, what: str) -> None:
        """What is being sent now; progress counts from 0 again."""
        ...

    def update(self, progress: Progress) -> None: ...


class Unwatched:
    def describe(self, what: str) -> None:
        pass

    def update(self, progress: Progress) -> None:
        pass


@dataclass
class _Repeat:
    """One repeat, out of one or more stretches.

    Attributes:
        killed: the tables, by number, of stretches whose process was killed.
        spent_s: of its --duration.
        due_s: how far along its schedule the stretches so far came.
        is_over: a stretch came to its own end: what it did not send is not sent any more.
    """

    number: int
    outline: Outline
    tables: list[RecordTable] = field(default_factory=list)
    killed: set[int] = field(default_factory=set)
    spent_s: float = 0.0
    due_s: float = 0.0
    is_over: bool = False

    def keep(self, table: RecordTable) -> None:
        """The records of one more stretch of it."""
        number = np.full(len(table), len(self.tables), dtype=np.int64)
        self.tables.append(replace(table, segment=number))

    @property
    def stretches(self) -> list[Stretch]:
        return [Stretch(table, number in self.killed) for number, table in enumerate(self.tables)]

    @property
    def table(self) -> RecordTable:
        sketches = self.outline.workload.sketches
        return settled_sessions(self.tables) if has_sessions(sketches) else settled(self.tables)


class ServeRun:
    """One point under way.

    Args:
        folder: where to keep it; may hold the beginning of the same run. None: nothing is kept.
        cold: empty the server's cache before every repeat.
        swept: what a sweep sets at this point, for its reports.
        gone: why nothing can be sent; what the folder holds is reported.
        variant: how it asks, where others ask the same in other ways.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        config: ServeConfig,
        *,
        tokenizer: Tokenizer | None = None,
        folder: RunDir | None = None,
        cold: bool = False,
        swept: dict[str, Any] | None = None,
        watcher: Watcher | None = None,
        gone: str | None = None,
        variant: Variant = PLAIN,
    ) -> None:
        self._endpoint = endpoint
        self._config = config
        self._variant = variant
        knows_head = cold or config.load.num_warmups > 0 or variant.prewarmed
        self._asker = Asker(endpoint, config, tokenizer, knows_head=knows_head, variant=variant)
        self._folder = folder
        self._cold = cold
        self._swept = swept or {}
        self._watcher = watcher or Unwatched()
        self._counters = CounterWatch.of(endpoint)
        self._events = EventWatch.of(endpoint, config.target.kv_events)
        self._witnesses: list[Witness] = [self._events, self._counters]
        if config.report.scrape_interval:
            self._witnesses.append(MetricsScrape.of(endpoint, config.report.scrape_interval))
        self._seen: list[Seen] = []
        self._health: list[ClientHealth] = []
        self._notes: list[str] = []
        self._notes_at_end: list[str] = []
        self._salt = variant.salt
        self._coldness: Coldness | None = None
        self._lie: str | None = None
        self._emptied = False
        self._interrupted = False
        self._gone = gone
        self._repeats: list[_Repeat] = []

    @property
    def gone(self) -> str | None:
        """Why the server could not be asked any more, if requests are left that it was not sent."""
        return self._gone

    def run(self) -> PointResult:
        """To its end, or to an interrupt; what was measured is in the result either way.

        Raises:
            ConfigError: the requests cannot be made, or do not fit the server.
            TargetError: the server fails what is not measured.
            KeyboardInterrupt: interrupted before anything was measured.
        """
        for _ in self.steps():
            pass
        return self.result()

    def steps(self) -> Iterator[int]:
        """The same, repeat by repeat, for whoever has something else to do in between: yields the number of
        each that is over. What is not gone through to its end was not measured.

        Raises: as `run`.
        """
        numbers = range(self._config.load.repeats)
        repeats = self._repeats = [_Repeat(number, self._asker.outline(number)) for number in numbers]
        check_lengths(self._endpoint, repeats[0].outline)
        self._take_up(repeats)
        if all(map(self._is_done, repeats)):
            self._gone = None
        elif self._config.load.num_warmups and not self._gone:
            with self._outlived(repeats):
                self._warm_up(repeats[0].outline)
        for repeat in repeats:
            to_send = not (self._interrupted or self._gone or self._is_done(repeat))
            if to_send and self._cold and not (repeat.number and self._variant.cold_once):
                with self._outlived(repeats):
                    self._start_cold(repeat)
            self._save_workload(repeat)
            if to_send and not self._gone and self._variant.prewarmed:
                with self._outlived(repeats):
                    self._bring_prefixes(repeat)
            self._measure(repeat)
            yield repeat.number

    @property
    def interrupted(self) -> bool:
        return self._interrupted

    def table(self, repeat: int) -> RecordTable:
        """Of a repeat, so far."""
        return self._repeats[repeat].table

    def result(self, num_repeats: int | None = None, *, broken_off: bool = False) -> PointResult:
        """What the repeats amount to, or the first of them.

        Args:
            broken_off: more was to come, though nobody interrupted this run itself.
        """
        self._interrupted = self._interrupted or broken_off
        return self._judge(self._repeats[:num_repeats])

    @contextlib.contextmanager
    def _outlived(self, repeats: list[_Repeat]) -> Iterator[None]:
        """A server that fails what is not measured ends the run; what was measured before is reported."""
        try:
            yield
        except TargetError as error:
            if not any(len(repeat.table) for repeat in repeats):
                raise
            self._gone = str(error)

    def _take_up(self, repeats: list[_Repeat]) -> None:
        """What an earlier process left in the folder."""
        for segment in [] if self._folder is None else self._folder.segments():
            repeat = repeats[int(segment.about["repeat"])]
            for folder in segment.driver_folders():
                recover(folder)  # its process may have been killed before all of it was read
            table = segment.table()
            if segment.about.get("server_went"):
                table = table.select(~in_vain(table))
            repeat.keep(table)
            repeat.spent_s += float(np.nanmax(table.last_s, initial=0.0))
            self._salt = int(segment.about["salt"])
            if (coldness := segment.about.get("cold_start")) is not None:
                self._coldness = Coldness(coldness)
            self._lie = segment.about.get("lying_reset", self._lie)
            self._seen.append(Seen.of_keys(segment.about.get("seen")))
            if "interrupted" not in segment.about:
                repeat.killed.add(len(repeat.tables) - 1)
            repeat.is_over = repeat.is_over or segment.about.get("interrupted") is False
            if "health" in segment.about:
                self._health.append(ClientHealth.from_json(msgspec.json.encode(segment.about["health"])))
            elif len(table):
                self._health.append(self._health_told_by(table))
                self._notes.append(HEALTH_LOST)
        for repeat in repeats:
            self._find_place(repeat)
        num_done = sum(len(self._done(repeat)) for repeat in repeats)
        if num_done and not all(map(self._is_done, repeats)):
            self._notes.append(f"resumed: {counted(num_done, 'request')} had ended before")
            num_failed = sum(_num_failed(repeat.table) for repeat in repeats)
            if num_failed:
                self._notes.append(f"{counted(num_failed, 'request')} of them had failed: not sent again")

    def _health_told_by(self, table: RecordTable) -> ClientHealth:
        """Of a stretch that was killed: only where its stamps come from is in its records."""
        by_kernel = table.kernel_stamps[~np.isnan(table.first_byte_s)]
        stamps = "mixed" if by_kernel.any() else "process"
        if len(by_kernel) and by_kernel.all():
            stamps = "kernel"
        return ClientHealth("target" if self._endpoint.backend == IN_PROCESS else stamps, num_workers=0)

    def _find_place(self, repeat: _Repeat) -> None:
        """Where on its schedule a repeat goes on. What fell due before goes at once; nothing waits for times
        that have passed, or the time waited would count as the run's."""
        if not (self._config.load.open_loop and repeat.tables):
            return
        if repeat.outline.offsets_s is not None:
            sent: set[str] = set()
            for table in repeat.tables:
                sent.update(itertools.compress(table.request_id, (~np.isnan(table.sent_s)).tolist()))
            ids = self._asker.request_ids(repeat.outline, repeat.number)
            offsets_s = repeat.outline.offsets_s.tolist()
            repeat.due_s = max(
                (at for name, at in zip(ids, offsets_s, strict=True) if name in sent), default=0.0
            )
        repeat.spent_s = repeat.due_s  # --duration is about when requests go, not about how they end

    def _warm_up(self, planned: Outline) -> None:
        self._watcher.describe("warming up")
        requests = self._asker.warm_ups(planned)
        at_once = self._config.load.max_concurrency or MAX_WARM_UP_CONCURRENCY
        load = Load(open_loop=False, max_concurrency=at_once, num_workers=1)
        drive = self._endpoint.driver.run(requests, load)
        if drive.interrupted:
            raise KeyboardInterrupt
        if not drive.table.ok.all():
            raise TargetError(f"a warm-up request failed: {first_failure(drive.table)}")

    def _bring_prefixes(self, repeat: _Repeat) -> None:
        requests = self._asker.prefixes(repeat.outline, repeat.number, self._salt)
        if not requests:
            return
        self._watcher.describe("bringing prefixes into the cache")
        at_once = self._config.load.max_concurrency or MAX_WARM_UP_CONCURRENCY
        drive = self._endpoint.driver.run(requests, Load(open_loop=False, max_concurrency=at_once))
        if drive.interrupted:
            raise KeyboardInterrupt
        if not drive.table.ok.all():
            raise TargetError(
                f"a request that only brings a prefix into the cache failed: {first_failure(drive.table)}"
            )

    def _done(self, repeat: _Repeat) -> set[str]:
        """What of it is not to be sent again."""
        sketches = repeat.outline.workload.sketches
        if sketches is None or sketches.after is None:
            return done_ids(repeat.table)
        ids = self._asker.request_ids(repeat.outline, repeat.number)
        return ended_ids(repeat.table, ids, sketches)

    def _is_done(self, repeat: _Repeat) -> bool:
        duration_s = self._config.load.duration
        if duration_s is not None and (repeat.is_over or repeat.spent_s >= duration_s):
            return True
        return len(self._done(repeat)) == repeat.outline.num_requests

    def _save_workload(self, repeat: _Repeat) -> None:
        """Before it is sent, and once its salt is known: the same file again where a run goes on."""
        over = self._interrupted or self._gone or self._is_done(repeat)
        if self._config.report.save_workload is not None and not over:
            self._watcher.describe("writing the workload")
            name = self._config.report.save_workload
            path = self._asker.save(repeat.outline, repeat.number, self._salt, name)
            self._notes_at_end.append(f"the workload is in {path}")

    def _measure(self, repeat: _Repeat) -> None:
        """What is left of a repeat; what is not sent any more is unsent."""
        if self._interrupted or self._gone or self._is_done(repeat):
            known = set(repeat.table.request_id)
            missing = rest_of(self._asker.requests(repeat.outline, repeat.number, self._salt), known)
            if len(known) < repeat.outline.num_requests:
                repeat.keep(RecordTable.of(planned.unsent(planned.offset_s) for planned in missing))
            return
        times = f"repeat {repeat.number + 1} of {self._config.load.repeats}"
        self._watcher.describe(times if self._config.load.repeats > 1 else "sending")
        segment = self._begin(repeat)
        folder = None if segment is None else segment.folder
        with watched_by(self._witnesses, folder, self._notes):
            drive = self._endpoint.driver.run(
                self._plan(repeat, self._done(repeat)),
                load_of(self._config, spent_s=repeat.spent_s),
                on_progress=self._watcher.update,
                folder=folder,
            )
        self._end(repeat, segment, drive)

    def _plan(self, repeat: _Repeat, done: set[str]) -> Iterator[Planned]:
        """What is left of it, from the start of this stretch on."""
        for planned in rest_of(self._asker.requests(repeat.outline, repeat.number, self._salt), done):
            if repeat.tables and (done or not self._emptied):
                # Perhaps it was sent before the stop, and finds itself; or the cache was emptied since.
                planned = replace(planned, num_expected_cached_tokens=None)
            yield replace(planned, offset_s=max(0.0, planned.offset_s - repeat.due_s))

    def _begin(self, repeat: _Repeat) -> Segment | None:
        if self._folder is None:
            return None
        return self._folder.begin_segment(
            {
                "repeat": repeat.number,
                "salt": self._salt,
                "cold_start": None if self._coldness is None else self._coldness.value,
                "lying_reset": self._lie,
                "started": wall_time_label(),
            }
        )

    def _end(self, repeat: _Repeat, segment: Segment | None, drive: Drive) -> None:
        repeat.keep(drive.table)
        if drive.deaths:  # of the dead nothing is known but what is in their records
            drive.health.stamps = self._health_told_by(drive.table).stamps
        self._health.append(drive.health)
        self._seen.append(Seen(self._counters.counts, self._events.counts, sent_tokens(drive.table)))
        self._interrupted = drive.interrupted
        if drive.deaths and not drive.interrupted:
            self._gone = "; ".join(drive.deaths)
        lost = 0 if drive.interrupted or drive.deaths else int(in_vain(drive.table).sum())
        if lost:
            self._gone = f"the server went away: {counted(lost, 'request')} at the end found no connection"
        if segment is not None and self._folder is not None:
            self._folder.end_segment(
                segment,
                {
                    "health": msgspec.Raw(drive.health.to_json().encode()),
                    "interrupted": drive.interrupted or bool(drive.deaths) or lost > 0,
                    "server_went": lost > 0,
                    "seen": self._seen[-1].keys(),
                },
            )

    def _start_cold(self, repeat: _Repeat) -> None:
        self._watcher.describe("emptying the cache")
        endpoint = self._endpoint
        size = endpoint.probe_tokens
        if endpoint.facts.max_model_len is not None:
            size = min(size, endpoint.facts.max_model_len - 1)
        found = endpoint.start_cold(self._asker.probe(repeat.outline, size, self._salt + repeat.number))
        self._coldness = found.coldness
        self._lie = found.detail if found.lied else None
        self._emptied = found.coldness is not Coldness.SALTED
        plain = self._salt == self._variant.salt
        if found.coldness is Coldness.SALTED and plain and repeat.outline.workload.made_up:
            self._salt = secrets.randbits(62) | 1
        note = cold_note(found, salted=self._salt != self._variant.salt)
        if note not in self._notes:
            self._notes.append(note)

    def _judge(self, repeats: list[_Repeat]) -> PointResult:
        return judged(
            Measured(
                asker=self._asker,
                repeats=[(repeat.outline, repeat.table) for repeat in repeats],
                stretches=[repeat.stretches for repeat in repeats],
                health=one_after_another(self._health),
                swept=self._swept,
                cold=self._cold,
                coldness=self._coldness,
                lie=self._lie,
                seen=Seen.sum(self._seen),
                salt=self._salt,
                notes=self._notes,
                notes_at_end=self._notes_at_end,
                interrupted=self._interrupted,
                gone=self._gone,
            )
        )


def _num_failed(table: RecordTable) -> int:
    """Through the server: what the client lost is sent again."""
    failed = table.select(table.outcome == CODE[Outcome.FAILED])
    return len(done_ids(failed))
