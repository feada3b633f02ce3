"""The serve run: one point, measured as often as asked. Warm up, start cold if asked, send, keep, judge.

Owns the order of things, and going on where a run stopped. What is sent is `point.py`'s, how it travels the
driver's, what the numbers mean `metrics/point.py`'s.

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

from prefixlab.bench.calibrate.store import calibration_notes
from prefixlab.bench.config.serve import ServeConfig
from prefixlab.bench.config.target import IN_PROCESS
from prefixlab.bench.loadgen.decoding.recover import recover
from prefixlab.bench.loadgen.driver import Drive, Progress
from prefixlab.bench.loadgen.health import ClientHealth, one_after_another
from prefixlab.bench.loadgen.plan import Load, Planned
from prefixlab.bench.metrics.point import PointResult, PointSettings, evaluate
from prefixlab.bench.metrics.turns import num_behind_failures
from prefixlab.bench.records.record import Outcome
from prefixlab.bench.records.run_dir import RunDir, Segment, done_ids, in_vain, settled
from prefixlab.bench.records.table import CODE, RecordTable
from prefixlab.bench.report.console import counted
from prefixlab.bench.runs.checks import check_lengths
from prefixlab.bench.runs.point import Asker, Outline, load_of, outline, rest_of
from prefixlab.bench.runs.sessions import corrected, ended_ids, has_sessions, settled_sessions
from prefixlab.bench.targets.cold_start import Coldness, ColdStart
from prefixlab.bench.targets.endpoint import Endpoint
from prefixlab.bench.traces.fidelity import Fidelity, fidelity_of
from prefixlab.bench.unchecked import FINDS_ITSELF, FORGETS_OTHERWISE, Known, explained
from prefixlab.bench.verdict import Verdict, delivery_notes, first_failure
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
        spent_s: of its --duration.
        due_s: how far along its schedule the stretches so far came.
        is_over: a stretch came to its own end: what it did not send is not sent any more.
    """

    number: int
    outline: Outline
    tables: list[RecordTable] = field(default_factory=list)
    spent_s: float = 0.0
    due_s: float = 0.0
    is_over: bool = False

    def keep(self, table: RecordTable) -> None:
        """The records of one more stretch of it."""
        number = np.full(len(table), len(self.tables), dtype=np.int64)
        self.tables.append(replace(table, segment=number))

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
    ) -> None:
        self._endpoint = endpoint
        self._config = config
        self._asker = Asker(endpoint, config, tokenizer, knows_head=cold or config.load.num_warmups > 0)
        self._folder = folder
        self._cold = cold
        self._swept = swept or {}
        self._watcher = watcher or Unwatched()
        self._health: list[ClientHealth] = []
        self._notes: list[str] = []
        self._notes_at_end: list[str] = []
        self._salt = 0
        self._coldness: Coldness | None = None
        self._emptied = False
        self._interrupted = False
        self._gone = gone

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
        repeats = [
            _Repeat(number, self._asker.outline(number)) for number in range(self._config.load.repeats)
        ]
        check_lengths(self._endpoint, repeats[0].outline)
        self._take_up(repeats)
        if all(map(self._is_done, repeats)):
            self._gone = None
        elif self._config.load.num_warmups and not self._gone:
            with self._outlived(repeats):
                self._warm_up(repeats[0].outline)
        for repeat in repeats:
            if not (self._interrupted or self._gone or self._is_done(repeat)) and self._cold:
                with self._outlived(repeats):
                    self._start_cold(repeat)
            self._save_workload(repeat)
            self._measure(repeat)
        return self._judge(repeats)

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
        drive = self._endpoint.driver.run(
            self._plan(repeat, self._done(repeat)),
            load_of(self._config, spent_s=repeat.spent_s),
            on_progress=self._watcher.update,
            folder=None if segment is None else segment.folder,
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
                "cold_start": self._cold_start,
                "started": wall_time_label(),
            }
        )

    def _end(self, repeat: _Repeat, segment: Segment | None, drive: Drive) -> None:
        repeat.keep(drive.table)
        if drive.deaths:  # of the dead nothing is known but what is in their records
            drive.health.stamps = self._health_told_by(drive.table).stamps
        self._health.append(drive.health)
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
        self._emptied = found.coldness is not Coldness.SALTED
        if found.coldness is Coldness.SALTED and not self._salt and repeat.outline.workload.made_up:
            self._salt = secrets.randbits(62) | 1
        note = cold_note(found, salted=bool(self._salt))
        if note not in self._notes:
            self._notes.append(note)

    def _judge(self, repeats: list[_Repeat]) -> PointResult:
        tables = [self._table(repeat) for repeat in repeats]
        for repeat, table in zip(repeats, tables, strict=True):
            planned = repeat.outline.num_requests
            assert len(table) == planned, f"{planned} requests planned, {len(table)} recorded"
        health = one_after_another(self._health)
        settings = point_settings(self._endpoint, self._config, repeats[0].outline, self._swept)
        settings = replace(settings, facts={**settings.facts, **self._cache_facts()})
        simulated = self._endpoint.simulated
        notes = [*self._endpoint.warnings, *([simulated] if simulated else []), *self._notes]
        if self._interrupted:
            notes.append("interrupted: the figures are of the requests that had finished")
        if self._gone:
            notes.append(f"not all was sent: {self._gone}")
        stretches = RecordTable.concat(tables)
        resumed = bool((stretches.ok & (stretches.segment > 0)).any())
        if resumed and has_sessions(repeats[0].outline.workload.sketches) and not self._was_emptied:
            notes.append(FINDS_ITSELF)
        notes += self._workload_notes(repeats[0].outline)
        bounded = self._asker.capacity_note(repeats[0].outline)
        notes += [
            note for note in (bounded, self._asker.made_for_note(repeats[0].outline)) if note is not None
        ]
        incomplete = self._interrupted or self._gone is not None
        result = evaluate(settings, tables, health, notes=notes, interrupted=incomplete)
        check, why = explained(result.check, stretches, self._known(repeats[0].outline))
        self._notes_at_end += why
        result = replace(result, check=check)
        result = replace(result, fidelity=self._fidelity(repeats[0].outline, result))
        overlap = bounded is not None and self._config.load.max_concurrency != 1
        if overlap and result.check.verdict is Verdict.MORE:
            self._notes_at_end.append(FORGETS_OTHERWISE)
        return replace(result, notes=(*result.notes, *self._result_notes(result, repeats[0].outline)))

    def _cache_facts(self) -> dict[str, Any]:
        """What the server's cache was before, and in which unit it counts."""
        return {
            "page_size": self._endpoint.page_size,
            "cold_start": self._cold_start,
            "salt": self._salt or None,
        }

    @property
    def _cold_start(self) -> str | None:
        """Of the last stretch that began."""
        return None if self._coldness is None else self._coldness.value

    def _fidelity(self, planned: Outline, result: PointResult) -> Fidelity | None:
        """Of a replay. Its prompts are made once more: nobody kept them."""
        if planned.workload.recorded is None:
            return None
        sent, wanted = planned.workload, outline(self._config).workload
        if wanted.recorded is None or wanted.sketches is None or sent.sketches is None:
            return None
        return fidelity_of(
            wanted.recorded,
            wanted.sketches,
            (prompt.token_ids for prompt in self._asker.prompts(sent.sketches, self._salt)),
            result.table,
            timed=self._config.load.fixed_schedule is True,
            num_repeats=len(result.runs),
            num_template_tokens=self._asker.wording.num_head_tokens,
        )

    def _table(self, repeat: _Repeat) -> RecordTable:
        """Of later turns of sessions, what to expect is known only now that they were answered."""
        sketches = repeat.outline.workload.sketches
        if sketches is None or sketches.continues is None or self._asker.is_chat:
            return repeat.table
        ids = self._asker.request_ids(repeat.outline, repeat.number)
        return corrected(repeat.table, sketches, ids, self._endpoint.expected_cached_tokens)

    def _known(self, planned: Outline) -> Known:
        return Known(
            tokens=self._asker.knows_tokens(planned),
            pages=self._endpoint.expected_cached_tokens(0, 1) is not None,
            is_chat=self._asker.is_chat,
            was_emptied=self._was_emptied,
        )

    @property
    def _was_emptied(self) -> bool:
        """Before the last stretch that began, perhaps by another process."""
        return self._coldness in (Coldness.PROVEN, Coldness.ASSUMED)

    def _workload_notes(self, planned: Outline) -> list[str]:
        asked = self._config.dataset.num_prompts
        if asked is not None and planned.num_requests < asked:
            why = self._config.load.arrivals() or "the data set"
            few = f"{planned.num_requests:,} of --num-prompts {asked:,} arrive: {why} end before"
            if planned.workload.recorded is not None:
                few = f"the trace has {planned.num_requests:,} requests for --num-prompts {asked:,}"
            return [few, *self._prompt_notes(planned)]
        return self._prompt_notes(planned)

    def _prompt_notes(self, planned: Outline) -> list[str]:
        workload = planned.workload
        if workload.made_up is None:
            return list(workload.notes)
        return [*workload.notes, f"prompts made of {self._asker.wording.vocabulary.describe()}"]

    def _result_notes(self, result: PointResult, planned: Outline) -> list[str]:
        table, metrics, sketches = result.table, result.metrics, planned.workload.sketches
        about = planned.workload.made_up is not None and not self._asker.wording.is_exact
        notes = [*self._notes_at_end, *delivery_notes(table, ignore_eos=self._endpoint.ignore_eos)]
        if about and (table.num_prompt_tokens[table.ok] >= 0).any():
            notes.append("prompt lengths are about as asked; the figures are the server's count")
        if result.fidelity is not None:
            notes.insert(0, f"fidelity: {result.fidelity}")
        unsent = int((table.outcome == CODE[Outcome.UNSENT]).sum())
        live = sketches is not None and sketches.continues is not None
        if live and (broken := num_behind_failures(table)):
            unsent -= broken
            notes.append(f"{counted(broken, 'later turn')} not sent, for a turn of its session had failed")
        if unsent and not result.interrupted:
            notes.append(f"{unsent} requests were not sent: --duration was over")
        check = result.check
        if check.verdict is Verdict.MORE and not self._cold:
            notes.append(
                "the cache was not cold: --flush-cache empties it first, another --seed makes new prompts"
            )
        if check.verdict is Verdict.LESS:
            notes.append(
                "expected is an ideal cache's, every earlier request done; overlap and eviction take"
            )
        if check.verdict in (Verdict.MORE, Verdict.LESS):
            notes.append(check.detail)
        if not result.health.num_workers:  # a client that left no word of itself
            return notes
        return notes + calibration_notes(result.health, metrics.output_throughput)


def cold_note(found: ColdStart, *, salted: bool) -> str:
    if found.coldness is Coldness.SALTED and not salted:
        return f"cold start impossible: {found.detail}; the prompts of a file may be cached already"
    return f"cold start {found.coldness.value}: {found.detail}"


def point_settings(
    endpoint: Endpoint, config: ServeConfig, planned: Outline, swept: dict[str, Any]
) -> PointSettings:
    """What the point's reports say of it."""
    return PointSettings(
        backend=endpoint.backend,
        model=endpoint.model,
        tokenizer=config.target.tokenizer,
        dataset=config.dataset.dataset_name,
        label=config.report.label,
        num_prompts=planned.num_requests,
        open_loop=config.load.open_loop,
        request_rate=config.load.request_rate,
        burstiness=config.load.burstiness,
        arrivals=config.arrivals(),
        facts=planned.workload.facts,
        ramp=config.load.ramp(),
        max_concurrency=config.load.max_concurrency,
        objectives=config.report.objectives(),
        selected=config.report.metrics(),
        percentiles=config.report.percentiles(),
        metadata=config.report.metadata_pairs(),
        swept=swept,
        date=wall_time_label(),
    )
