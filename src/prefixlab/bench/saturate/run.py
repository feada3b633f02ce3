"""The search on a server: probe, judge, decide, until the answer is sure enough.

Owns the order of things and the folder of each probe, which is that of a point of a sweep. Where to probe is
`search.py`'s, what a probe showed `evidence.py`'s, how a point is measured the runs'.

Invariant: decisions depend on the probes alone, so a search that was broken off goes on where it stood: what
it had found out is handed to it, and folders of probes that are finished are only read.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefixlab.bench.config.serve import ServeConfig
from prefixlab.bench.metrics.point import PointResult
from prefixlab.bench.runs.serve import Watcher
from prefixlab.bench.runs.sweep import MakeTokenizer, SweepPoint, measure_point
from prefixlab.bench.runs.trace import within_limits
from prefixlab.bench.saturate.config import SaturateConfig
from prefixlab.bench.saturate.evidence import evidence
from prefixlab.bench.saturate.search import Answer, Probe, Search, answer, next_load
from prefixlab.bench.targets.endpoint import Endpoint
from prefixlab.core.errors import TargetError

Watch = Callable[[ServeConfig], AbstractContextManager[Watcher]]
Say = Callable[[str], None]
MOST_ATTEMPTS = 3
"""At a probe: a server at its limit refuses now and then."""


@dataclass
class Found:
    """What a search has found so far.

    Attributes:
        capacity: requests per second of the closed loop it began with; None where there was none.
        results: of the probes, in the order they were made.
        gone: why the server could not be asked any more.
    """

    config: SaturateConfig
    capacity: float | None = None
    probes: list[Probe] = field(default_factory=list)
    results: list[PointResult] = field(default_factory=list)
    interrupted: bool = False
    gone: str | None = None

    def to_json(self) -> dict[str, Any]:
        """What was found out, to go on with."""
        probes = [dataclasses.asdict(probe) for probe in self.probes]
        return {"capacity": self.capacity, "probes": probes}

    @classmethod
    def from_json(cls, config: SaturateConfig, data: Mapping[str, Any]) -> Found:
        return cls(config, data.get("capacity"), [Probe(**probe) for probe in data.get("probes", [])])

    @property
    def search(self) -> Search:
        return self.config.search(self.capacity)

    @property
    def answer(self) -> Answer:
        return answer(self.search, self.probes)


def find_knee(
    saturate: SaturateConfig,
    config: ServeConfig,
    endpoint: Endpoint,
    make_tokenizer: MakeTokenizer,
    *,
    folder: Path | None,
    watch: Watch,
    say: Say,
    known: Found | None = None,
) -> Iterator[Found]:
    """The state of the search after each probe; the last one has the answer, or says why there is none.

    Args:
        config: of every probe, but for what the search decides.
        say: told what is tried next, and why.
        known: what an earlier process had found out in this folder, without results.

    Raises:
        ConfigError, TargetError: as a run does, where nothing has been measured.
    """
    found = Found(saturate)
    before = known or found
    objectives = config.report.objectives()
    assert objectives is not None, "SaturateConfig.check asks for objectives"

    def measure(name: str, swept: dict[str, float], settings: ServeConfig) -> PointResult:
        settings = within_limits(settings, endpoint)
        point = SweepPoint(name, swept, settings)
        for attempt in range(MOST_ATTEMPTS):
            try:
                with watch(settings) as watcher:
                    result, gone = measure_point(point, endpoint, make_tokenizer, folder, watcher)
                break
            except TargetError as error:  # of what is not measured, such as a probe of the cache
                if attempt == MOST_ATTEMPTS - 1:
                    raise
                say(f"once more, for {error}")
        found.gone, found.interrupted = gone, result.interrupted and gone is None
        return result

    if not saturate.whole and saturate.start is None:
        settings = saturate.capacity_probe(config)
        slots = settings.load.max_concurrency
        say(f"first a short closed loop of {slots}, for where to begin")
        result = measure("000-capacity", {}, settings)
        if not result.metrics.request_throughput:
            raise TargetError(f"nothing came through a closed loop of {slots}: {_failures(result)}")
        found.capacity = before.capacity or _throughput(result)
        if found.interrupted or found.gone:
            yield found
            return
    while (load := next_load(found.search, found.probes)) is not None:
        number = len(found.probes) + 1
        load = load if saturate.whole else _rounded(load)
        say(_why(found, number, load))
        seen = max((_throughput(result) for result in found.results), default=None)
        option = "max-concurrency" if saturate.whole else "request-rate"
        result = measure(
            f"{number:03}-{option}={load:g}", {option: load}, saturate.probe(config, number, load, seen)
        )
        found.results.append(result)
        if number <= len(before.probes):
            found.probes.append(before.probes[number - 1])
        elif not (found.interrupted or found.gone):
            found.probes.append(evidence(result, load, objectives, saturate.share))
        yield found
        if found.interrupted or found.gone:
            return


def _throughput(result: PointResult) -> float:
    """Requests per second, of the steady stretch where there is one."""
    steady = result.metrics.steady
    return (steady.request_throughput if steady else result.metrics.request_throughput) or 0.0


def _rounded(load: float) -> float:
    """To four digits, which folders and reports can show whole."""
    return round(load, 3 - math.floor(math.log10(load)))


def _why(found: Found, number: int, load: float) -> str:
    unit, so_far = found.config.unit, found.answer
    probe = f"probe {number} of at most {found.config.max_probes}: {load:g} {unit}"
    low = "" if so_far.low is None else f"above {so_far.low:.4g}"
    high = "" if so_far.high is None else f"below {so_far.high:.4g}"
    between = " and ".join(part for part in (low, high) if part)
    return f"{probe}; the knee is probably {between}" if between else probe


def _failures(result: PointResult) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in result.metrics.failures.items()) or "no answer"
