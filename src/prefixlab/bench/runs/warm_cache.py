"""The warm-cache run. Per point: start cold, warm exactly the shared prefix, send all prompts, check hits.

Owns the order of things. What the prompts are is the workload's, how they travel the client's, what the
numbers mean the metrics' and the verdict's.

Invariants: a point's prompts depend on (seed, percent) alone; every repeat starts cold; points are measured
in another order in every repeat, so that drift of the machine falls on all of them.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from prefixlab.bench.calibrate.store import calibration_notes
from prefixlab.bench.config.warm_cache import WarmCacheOptions
from prefixlab.bench.doctor.client_notes import client_notes
from prefixlab.bench.ledger.account import Account
from prefixlab.bench.ledger.check import CacheCheck, check_cache, delivery_notes
from prefixlab.bench.ledger.holders import Holders
from prefixlab.bench.ledger.ledger import Ledger, reconcile
from prefixlab.bench.ledger.seen import Seen, sent_tokens
from prefixlab.bench.loadgen.driver import Drive, Progress
from prefixlab.bench.loadgen.health import ClientHealth
from prefixlab.bench.loadgen.plan import Load, Planned
from prefixlab.bench.metrics.summary import Metrics, summarise
from prefixlab.bench.records.record import Record
from prefixlab.bench.targets.cold_start import Coldness, ColdStart
from prefixlab.bench.targets.endpoint import Endpoint
from prefixlab.bench.witness.counters import CounterWatch
from prefixlab.bench.witness.events import EventWatch
from prefixlab.bench.witness.witness import watched_by
from prefixlab.bench.workloads.warm_cache import PointShape, WarmCachePoint, make_point, shape_point
from prefixlab.bench.workloads.wording import require_exact
from prefixlab.core.errors import ConfigError, TargetError

TRIAL_SALT = 1


@dataclass(frozen=True, slots=True)
class PointRun:
    """One point, measured once.

    Attributes:
        repeat: 0, 1, …
        salt: what the prompts were salted with; 0 when they are those of (seed, pct).
        warm_up_cached_tokens: what the server reported for the warm-up; None if it did not, or none was sent.
        notes: what a reader should know before trusting the numbers.
        health: how well the client itself did.
        interrupted: it was ended early; its records say how far it came.
        ledger: the hits, from all sides; None where nobody watched.
    """

    shape: PointShape
    repeat: int
    cold_start: ColdStart
    salt: int
    warm_up_cached_tokens: int | None
    records: tuple[Record, ...]
    metrics: Metrics
    check: CacheCheck
    notes: tuple[str, ...]
    health: ClientHealth = field(default_factory=ClientHealth)
    interrupted: bool = False
    ledger: Ledger | None = None


class Listener(Protocol):
    """Watches a run: for progress on the screen, and for results that must survive a later failure."""

    def point_started(self, shape: PointShape, repeat: int, num_requests: int) -> None: ...

    def progress(self, progress: Progress) -> None: ...

    def point_done(self, run: PointRun) -> None:
        """Of an interrupted point too, if any of its requests succeeded: it is the last."""
        ...


def run_warm_cache(
    endpoint: Endpoint, options: WarmCacheOptions, listener: Listener, *, kv_events: Sequence[str] = ()
) -> list[PointRun]:
    """Measure every point of `options`, `repeats` times.

    Args:
        kv_events: where the server publishes them; else where it says.

    Raises:
        ConfigError: the prompts cannot be made.
        TargetError: the server fails a request that is not measured (trial, probe or warm-up).
        KeyboardInterrupt: it was interrupted; what was measured went to `listener`.
    """
    require_exact(endpoint.wording)
    sweep = _Sweep(endpoint, options, listener, EventWatch.of(endpoint, kv_events))
    sweep.try_out()
    runs = []
    for repeat in range(options.repeats):
        for pct in measuring_order(options, repeat):
            run = sweep.measure(pct, repeat)
            if run.metrics.ok or not run.interrupted:
                listener.point_done(run)
            if run.interrupted:
                raise KeyboardInterrupt
            runs.append(run)
    return runs


def measuring_order(options: WarmCacheOptions, repeat: int) -> list[int]:
    """Points as given in the first repeat, shuffled by (seed, repeat) in the others."""
    pcts = list(options.pcts)
    if repeat:
        random.Random(f"{options.seed}/{repeat}").shuffle(pcts)
    return pcts


class _Sweep:
    """A run under way. Remembers whether the server can be emptied, and what was said of the client."""

    def __init__(
        self, endpoint: Endpoint, options: WarmCacheOptions, listener: Listener, events: EventWatch
    ) -> None:
        self._endpoint = endpoint
        self._events = events
        self._counters = CounterWatch.of(endpoint)
        self._options = options
        self._listener = listener
        self._salted_because: ColdStart | None = None
        self._said: set[str] = set()

    def shape(self, pct: int) -> PointShape:
        wording = self._endpoint.wording
        return shape_point(
            pct,
            self._options.total_tokens,
            num_head_tokens=wording.num_head_tokens,
            num_tail_tokens=wording.num_tail_tokens,
        )

    def try_out(self) -> None:
        """One whole request that is not measured: finds out early that prompts are too long, and gets the
        first-request work of a fresh server out of the way."""
        shapes = [self.shape(pct) for pct in self._options.pcts]
        options, limit = self._options, self._endpoint.facts.max_model_len
        if limit is not None and options.total_tokens + options.output_len > limit:
            raise ConfigError(
                f"--total-tokens {options.total_tokens} and --output-len {options.output_len}: the server "
                f"takes at most {limit} tokens of prompt and output"
            )
        (prompt,) = self._make_point(shapes[0], salt=TRIAL_SALT, num_prompts=1).prompts
        record = self._endpoint.ask("trial", prompt, options.output_len)
        if prompt.text is not None and record.prompt_tokens != len(prompt):
            raise TargetError(
                f"the server made {record.prompt_tokens} tokens of a chat prompt that --tokenizer makes "
                f"{len(prompt)} of: another tokenizer, or another template"
            )

    def measure(self, pct: int, repeat: int) -> PointRun:
        shape = self.shape(pct)
        self._listener.point_started(shape, repeat, self._options.num_prompts)
        salt = 0
        if self._salted_because is None:
            point = self._make_point(shape)
            cold_start = self._endpoint.start_cold(point.probe)
            if cold_start.coldness is Coldness.SALTED:
                self._salted_because = cold_start
        if self._salted_because is not None:
            cold_start = self._salted_because
            salt = secrets.randbits(62) | 2  # never 0 (none) nor 1 (the trial)
            point = self._make_point(shape, salt=salt)
        warmed = None
        if point.warm_up is not None:
            warmed = (self._endpoint.ask("warm-up", point.warm_up, 1)).num_cached_tokens
        told: list[str] = []
        with watched_by((self._events, self._counters), None, told):
            drive = self._endpoint.driver.run(
                self._plan(point, repeat),
                Load(
                    open_loop=False,
                    max_concurrency=self._options.max_concurrency,
                    num_workers=self._endpoint.num_workers,
                ),
                on_progress=self._listener.progress,
            )
        ledger = self._ledger(shape, cold_start, drive)
        metrics = summarise(drive.table, planned=self._options.num_prompts)
        said = calibration_notes(drive.health, metrics.output_throughput)
        new = [note for note in said if note not in self._said]
        self._said.update(new)
        return PointRun(
            shape=shape,
            repeat=repeat,
            cold_start=cold_start,
            salt=salt,
            warm_up_cached_tokens=warmed,
            records=tuple(drive.records),
            metrics=metrics,
            check=ledger.check,
            notes=(*self._notes(shape, warmed, drive), *told, *new, *ledger.remarks),
            health=drive.health,
            interrupted=drive.interrupted,
            ledger=ledger,
        )

    def _ledger(self, shape: PointShape, cold_start: ColdStart, drive: Drive) -> Ledger:
        endpoint, table = self._endpoint, drive.table
        of_each = shape.total_tokens - shape.num_shared_tokens + self._options.output_len
        return reconcile(
            Account(
                table=table,
                check=check_cache(table),
                page_size=endpoint.page_size,
                capacity_tokens=endpoint.facts.capacity_tokens,
                footprint_tokens=shape.num_shared_tokens + len(table) * of_each,
                rounding_tokens=len(table) * (endpoint.page_size or 1),
                caching_off=endpoint.facts.caching_off,
                none_expected=endpoint.expects_miss,
                is_cold=cold_start.coldness is Coldness.PROVEN,
                is_salted=cold_start.coldness is Coldness.SALTED,
                lie=cold_start.detail if cold_start.lied else None,
                seen=Seen(self._counters.counts, self._events.counts, sent_tokens(table)),
                holders=Holders.warmed(len(table), shape.num_shared_tokens),
            )
        )

    def _plan(self, point: WarmCachePoint, repeat: int) -> list[Planned]:
        shape = point.shape
        expected = self._endpoint.expected_cached_tokens(shape.num_shared_tokens, shape.total_tokens)
        return [
            Planned(
                request=self._endpoint.request(
                    prompt, f"pct{shape.pct}-repeat{repeat}-{number}", self._options.output_len
                ),
                num_prompt_tokens=len(prompt),
                num_expected_cached_tokens=expected,
            )
            for number, prompt in enumerate(point.prompts)
        ]

    def _make_point(
        self, shape: PointShape, *, salt: int = 0, num_prompts: int | None = None
    ) -> WarmCachePoint:
        return make_point(
            self._endpoint.wording,
            shape,
            num_prompts=num_prompts or self._options.num_prompts,
            seed=self._options.seed,
            probe_tokens=min(self._endpoint.probe_tokens, shape.total_tokens),
            salt=salt,
        )

    def _notes(self, shape: PointShape, warmed: int | None, drive: Drive) -> list[str]:
        notes = list(self._endpoint.warnings)
        if drive.interrupted:
            notes.append("interrupted: the figures are of the requests that had finished by then")
        notes += [f"not all was sent: {death}" for death in drive.deaths]
        page_size = self._endpoint.page_size
        head = self._endpoint.wording.num_head_tokens
        if page_size is not None and 0 < shape.num_shared_tokens < page_size:
            notes.append(
                f"the shared prefix of {shape.num_shared_tokens} tokens is shorter than a page of "
                f"{page_size}: nothing can hit"
            )
        capacity = self._endpoint.facts.capacity_tokens
        in_flight = min(self._options.max_concurrency, self._options.num_prompts)
        needed = shape.num_shared_tokens + in_flight * (
            shape.total_tokens - shape.num_shared_tokens + self._options.output_len
        )
        if capacity is not None and needed > capacity:
            notes.append(
                f"{in_flight} requests in flight need {needed} tokens of KV and the server holds {capacity}: "
                "fewer run at once, and the prefix may be evicted"
            )
        if head > shape.prefix_len:
            notes.append(f"the chat template's first {head} tokens are shared by every prompt")
        if warmed and warmed > (self._endpoint.expected_cached_tokens(head, shape.total_tokens) or 0):
            notes.append(f"the warm-up itself found {warmed} cached tokens: this point did not start cold")
        notes += delivery_notes(drive.table, ignore_eos=self._endpoint.ignore_eos)
        return notes + client_notes(drive.health, open_loop=False)
