"""The load generator: takes a plan of requests, puts them to a target, returns one record for each.

Owns when a request goes out. Knows neither what the prompts mean nor what the numbers will be used for.

Two ways to pace. Closed loop: at most so many requests at once, the next one goes when one ends. Open loop:
each goes at its own time, whatever became of the others, counted from the run's start (so without drift).

Invariant: every planned request ends as exactly one record, also when the run is cancelled: those in flight
as cancelled, the rest as unsent, all through `on_record`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence

from prefixlab.bench.loadgen.plan import Planned
from prefixlab.bench.records.builder import RecordBuilder
from prefixlab.bench.records.record import Outcome, Record
from prefixlab.core.clock import Clock
from prefixlab.core.errors import TargetError
from prefixlab.core.seams import Target
from prefixlab.core.target import Sent

OnRecord = Callable[[Record], None]


async def run_closed_loop(
    target: Target,
    plan: Sequence[Planned],
    *,
    max_concurrency: int,
    clock: Clock,
    on_record: OnRecord | None = None,
) -> list[Record]:
    """Keep `max_concurrency` requests in flight, in the plan's order, until all are done."""
    run = _Run(target, clock, on_record)
    waiting = iter(plan)

    async def keep_one_in_flight() -> None:
        for planned in waiting:
            await run.one(planned, intended_s=clock.now())

    with run.accounting_for(plan, clock.now()):
        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(max_concurrency, len(plan))):
                tasks.create_task(keep_one_in_flight())
    return run.records


async def run_open_loop(
    target: Target, plan: Sequence[Planned], *, clock: Clock, on_record: OnRecord | None = None
) -> list[Record]:
    """Send each request at its `offset_s`, however many are in flight, and wait until all are done."""
    run = _Run(target, clock, on_record)
    start_s = clock.now()

    async def send_when_due(planned: Planned) -> None:
        intended_s = start_s + planned.offset_s
        await asyncio.sleep(max(0.0, intended_s - clock.now()))
        await run.one(planned, intended_s)

    with run.accounting_for(plan, start_s):
        async with asyncio.TaskGroup() as tasks:
            for planned in plan:
                tasks.create_task(send_when_due(planned))
    return run.records


class _Run:
    """Records of a run in the making."""

    def __init__(self, target: Target, clock: Clock, on_record: OnRecord | None) -> None:
        self._target = target
        self._clock = clock
        self._on_record = on_record
        self.records: list[Record] = []

    async def one(self, planned: Planned, intended_s: float) -> None:
        """Send one request and record what came of it. Whatever the server does is data, not an exception."""
        builder = RecordBuilder(planned.unsent(intended_s))
        try:
            async for item in self._target.stream(planned.request):
                if isinstance(item, Sent):
                    builder.sent(item)
                else:
                    builder.add(item)
        except TargetError as error:
            self._keep(builder.finish(Outcome.FAILED, self._clock.now(), error=str(error)))
        except asyncio.CancelledError:
            self._keep(builder.finish(Outcome.CANCELLED, self._clock.now()))
            raise
        else:
            self._keep(builder.finish(Outcome.OK, self._clock.now()))

    @contextlib.contextmanager
    def accounting_for(self, plan: Sequence[Planned], start_s: float) -> Iterator[None]:
        """On the way out, for whatever reason, every planned request has its record."""
        try:
            yield
        finally:
            seen = {record.request_id for record in self.records}
            for planned in plan:
                if planned.request.request_id not in seen:
                    self._keep(planned.unsent(start_s + planned.offset_s))

    def _keep(self, record: Record) -> None:
        self.records.append(record)
        if self._on_record is not None:
            self._on_record(record)
