"""Several servers asked at the same time, as one endpoint: each gets its own part of every plan.

Owns splitting a plan and putting its parts together again. Which request is for which server, the plan says.

Invariants: every server is started cold, tried and warmed like a single one; records of all lie in one table,
so that percentiles are of all requests; what one server refuses, all of them refuse.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path

from prefixlab.bench.loadgen.driver import Drive, Driver, OnProgress, Progress
from prefixlab.bench.loadgen.fleet import Interrupts
from prefixlab.bench.loadgen.health import ClientHealth
from prefixlab.bench.loadgen.plan import Load, Planned
from prefixlab.bench.records.record import Outcome, Record
from prefixlab.bench.records.run_dir import part_of
from prefixlab.bench.records.table import RecordTable
from prefixlab.bench.targets.cold_start import Coldness, ColdStart
from prefixlab.bench.targets.control import Control, FlushAnswer, ServerFacts
from prefixlab.bench.targets.endpoint import Endpoint
from prefixlab.bench.workloads.wording import Prompt
from prefixlab.core.errors import ConfigError

ALIKE = ("backend", "model", "page_size", "expects_miss", "ignore_eos")
"""What plans are made of must be the same for all servers."""


@dataclass(frozen=True)
class SeveralEndpoints(Endpoint):
    """See the module. What is said of the first is so of all.

    Attributes:
        each: the servers, in the order of `Planned.server`.
    """

    each: tuple[Endpoint, ...] = ()

    @classmethod
    def of(cls, endpoints: Sequence[Endpoint]) -> SeveralEndpoints:
        """Raises ConfigError where they are not alike."""
        first = endpoints[0]
        for other in endpoints[1:]:
            for name in ALIKE:
                ours, theirs = getattr(first, name), getattr(other, name)
                if ours != theirs:
                    word = name.replace("_", " ")
                    raise ConfigError(
                        f"{first.url} has {word} {ours!r}, and {other.url} {theirs!r}: what one set of "
                        "requests goes to must be alike"
                    )
        whole = {field.name: getattr(first, field.name) for field in dataclasses.fields(Endpoint)}
        limits = [limit for one in endpoints if (limit := one.facts.max_model_len) is not None]
        narrowest = min(endpoints, key=lambda one: len(one.wording.vocabulary))
        return cls(
            **whole
            | {
                "url": ", ".join(one.url for one in endpoints),
                "driver": SeveralDrivers([one.driver for one in endpoints]),
                "control": SeveralControls(endpoints),
                # Each holds its own part of what is sent, so that no one capacity is that of all.
                "facts": replace(first.facts, max_model_len=min(limits, default=None), capacity_tokens=None),
                "wording": narrowest.wording,
                "warnings": tuple(dict.fromkeys(warning for one in endpoints for warning in one.warnings)),
            },
            each=tuple(endpoints),
        )

    def send(self, planned: Planned) -> Record:
        """To all, one after another; the first record that is not ok, else the last."""
        for one in self.each:
            record = one.send(planned)
            if record.outcome is not Outcome.OK:
                break
        return record

    def start_cold(self, probe: Prompt) -> ColdStart:
        """All of them; the least sure of what they say."""
        starts = [one.start_cold(probe) for one in self.each]
        order = [Coldness.PROVEN, Coldness.ASSUMED, Coldness.SALTED]
        least = max(starts, key=lambda start: order.index(start.coldness))
        if len(set(starts)) == 1:
            return replace(least, detail=f"{least.detail} (all {len(starts)} servers)")
        said = "; ".join(f"{one.url}: {start.detail}" for one, start in zip(self.each, starts, strict=True))
        return ColdStart(least.coldness, said, lied=any(start.lied for start in starts))


@dataclass(frozen=True)
class SeveralControls:
    """Implements `targets.control.Control`."""

    endpoints: Sequence[Endpoint]

    @property
    def _controls(self) -> list[Control]:
        return [one.control for one in self.endpoints]

    def facts(self) -> ServerFacts:
        return self._controls[0].facts()

    def flush(self) -> FlushAnswer:
        answers = [control.flush() for control in self._controls]
        refused = [answer for answer in answers if not answer.done]
        return (refused or answers)[0]

    def metrics_text(self) -> str | None:
        """One after another, each under its URL."""
        texts = [(one.url, one.control.metrics_text()) for one in self.endpoints]
        told = [f"# of {url}\n{text}" for url, text in texts if text is not None]
        return "".join(told) or None


class SeveralDrivers:
    """Implements `loadgen.driver.Driver`: each part by a driver of its own, at the same time. Each keeps its
    records in a folder of its own within that of the run (see `records.run_dir`)."""

    def __init__(self, drivers: Sequence[Driver]) -> None:
        self._drivers = drivers

    def run(
        self,
        plan: Iterable[Planned],
        load: Load,
        *,
        on_progress: OnProgress | None = None,
        folder: Path | None = None,
    ) -> Drive:
        parts: list[list[Planned]] = [[] for _ in self._drivers]
        for planned in plan:
            assert planned.after is None, "what waits for another would have to be found in its part"
            parts[planned.server].append(planned)
        slots = load.max_concurrency
        share = None if slots is None else max(1, slots // len(parts))
        # A thread for each must only wait: the sending is done by processes, however few requests there are.
        load = replace(load, max_concurrency=share, num_workers=load.num_workers or 1)
        progress = _Sum(len(parts), on_progress)
        with Interrupts(), ThreadPoolExecutor(len(parts)) as threads:
            runs = []
            for number, (driver, part) in enumerate(zip(self._drivers, parts, strict=True)):
                own = None if folder is None else part_of(folder, number)
                runs.append(
                    threads.submit(driver.run, part, load, on_progress=progress.of(number), folder=own)
                )
            wait(runs)
            drives = [run.result() for run in runs]
        health = ClientHealth(num_workers=0)
        for drive in drives:
            health.merge(drive.health)
        return Drive(
            table=RecordTable.concat([drive.table for drive in drives]),
            duration_s=max(drive.duration_s for drive in drives),
            health=health,
            interrupted=any(drive.interrupted for drive in drives),
            deaths=tuple(death for drive in drives for death in drive.deaths),
        )


class _Sum:
    """How far all of them are together."""

    def __init__(self, num_parts: int, on_progress: OnProgress | None) -> None:
        self._last: list[Progress | None] = [None] * num_parts
        self._on_progress = on_progress

    def of(self, number: int) -> OnProgress | None:
        return None if self._on_progress is None else lambda progress: self._hear(number, progress)

    def _hear(self, number: int, progress: Progress) -> None:
        assert self._on_progress is not None
        self._last[number] = progress
        known = [last for last in self._last if last is not None]
        total = {
            field.name: sum(getattr(last, field.name) for last in known)
            for field in dataclasses.fields(Progress)
            if field.name not in ("elapsed_s", "ttft_s", "itl_s")
        }
        self._on_progress(
            Progress(
                elapsed_s=max(last.elapsed_s for last in known),
                ttft_s=_mean([(last.ttft_s, last.finished) for last in known]),
                itl_s=_mean([(last.itl_s, last.tokens) for last in known]),
                **total,
            )
        )


def _mean(parts: list[tuple[float | None, int]]) -> float | None:
    """Of what was measured, by how much it was measured on."""
    known = [(value, weight) for value, weight in parts if value is not None and weight]
    weights = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / weights if weights else None
