"""`bench calibrate`: the client against the metronome, at the load asked for and then up to its ceiling.

Owns the order of runs, and where client and metronome run: the metronome has a core of its own wherever there
are two, so that each is slowed down only by itself. Compares and judges nothing: its neighbours do.

Invariant: what drives the metronome is the very driver that benchmarks use.
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from prefixlab import __version__
from prefixlab.bench.calibrate.compare import Comparison, compare
from prefixlab.bench.calibrate.ladder import Judgement, Rung, climb, judge
from prefixlab.bench.calibrate.metronome import Shape
from prefixlab.bench.calibrate.process import metronome
from prefixlab.bench.calibrate.store import Calibration
from prefixlab.bench.config.calibrate import CalibrateConfig
from prefixlab.bench.loadgen.driver import Driver
from prefixlab.bench.loadgen.fleet import default_num_workers
from prefixlab.bench.loadgen.plan import Load, Planned
from prefixlab.bench.report.environment import machine_name
from prefixlab.core.block_hash import as_token_ids
from prefixlab.core.clock import wall_time_label
from prefixlab.core.errors import TargetError
from prefixlab.core.target import TargetRequest

PROMPT_LEN = 64
MOST_STREAMS = 16_384
SPARE_FILES = 128
"""Open files of the metronome other than its streams; a client process needs fewer."""

MakeDriver = Callable[[str], Driver]
"""A driver for OpenAI completions at a base URL."""


@dataclass(frozen=True)
class CalibrateRun:
    """What was found.

    Attributes:
        asked: the load asked for.
        rungs: the way up, by streams.
        calibration: None if the client was not within the limit anywhere.
    """

    asked: Comparison
    asked_judgement: Judgement
    rungs: list[Rung]
    calibration: Calibration | None


def run_calibrate(
    config: CalibrateConfig,
    make_driver: MakeDriver,
    say: Callable[[str], None],
    *,
    most_streams: int | None = None,
) -> CalibrateRun:
    """Run it all; takes a minute or two, `config.quick` seconds. `say` is told what happens next.

    Raises:
        ConfigError: not on this system, or not with so few open files.
        TargetError: a client process died.
        KeyboardInterrupt: a run was interrupted; what it brought is no finding.
    """
    itl_s = config.itl_ms / 1e3
    # The same number on every rung, though the benchmarks would choose more for more streams.
    num_workers = config.num_workers or default_num_workers(config.max_concurrency)
    rung_s, growth = (1.0, 2.0) if config.quick else (2.0, 2**0.5)
    machine = machine_name()
    with _a_core_for_the_metronome() as core:
        if core is None:
            say("one core for client and metronome: each is slowed down by the other")

        def measure(plan: list[Planned], load: Load) -> Comparison:
            shape = Shape(ttft_ns=round(config.ttft_ms * 1e6), itl_ns=round(config.itl_ms * 1e6))
            with metronome(shape, core=core) as playing:
                drive = make_driver(playing.url).run(plan, load)
                if drive.interrupted:
                    raise KeyboardInterrupt
                if drive.deaths:
                    raise TargetError(f"no finding: {'; '.join(drive.deaths)}")
                return compare(drive, playing.stop(), shape.itl_ns)

        tried: set[int] = set()

        def measure_rung(streams: int) -> Comparison:
            again = (
                ", once more: a hiccup of the machine is not the client's ceiling" if streams in tried else ""
            )
            tried.add(streams)
            say(f"{streams:,} streams, {streams / itl_s:,.0f} tokens/s{again}")
            num_tokens = max(2, round(rung_s / itl_s))
            load = Load(open_loop=False, max_concurrency=streams, num_workers=num_workers)
            return measure(_plan(streams, num_tokens, None), load)

        say(f"{config.num_requests:,} requests as asked for")
        plan = _plan(config.num_requests, config.output_len, config.request_rate)
        asked = measure(
            plan,
            Load(
                open_loop=config.request_rate is not None,
                max_concurrency=config.max_concurrency,
                num_workers=num_workers,
            ),
        )
        judgement = judge(asked, itl_s)
        first = config.max_concurrency if judgement is Judgement.WITHIN else config.max_concurrency // 8
        rungs = list(
            climb(
                measure_rung,
                itl_s=itl_s,
                first=max(1, first),
                growth=growth,
                most=most_streams or _most_streams(),
            )
        )
    within = [asked] if judgement is Judgement.WITHIN else []
    within += [rung.comparison for rung in rungs if rung.judgement is Judgement.WITHIN]
    return CalibrateRun(asked, judgement, rungs, _calibration(within, rungs, machine) if within else None)


def _calibration(within: list[Comparison], rungs: list[Rung], machine: str) -> Calibration:
    best = max(within, key=lambda comparison: comparison.tokens_per_s)
    return Calibration(
        machine=machine,
        version=__version__,
        num_workers=best.health.num_workers,
        tokens_per_s=best.tokens_per_s,
        streams=max(comparison.streams for comparison in within),
        at_least=rungs[-1].judgement is not Judgement.ERRED,
        ttft=best.ttft,
        itl=best.itl,
        stamps=best.health.stamps,
        made=wall_time_label(),
    )


def _most_streams() -> int:
    """As many as the metronome may have open files for."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    unlimited = hard == resource.RLIM_INFINITY
    return MOST_STREAMS if unlimited else max(1, min(MOST_STREAMS, hard - SPARE_FILES))


def _plan(num_requests: int, num_tokens: int, rate: float | None) -> list[Planned]:
    """Requests the metronome can tell apart by their `user` field."""
    prompt = as_token_ids(np.arange(PROMPT_LEN))
    return [
        Planned(
            TargetRequest(name, num_tokens, prompt_token_ids=prompt, extra_body={"user": name}),
            num_prompt_tokens=PROMPT_LEN,
            offset_s=0.0 if rate is None else number / rate,
        )
        for number, name in ((number, f"calibrate-{number}") for number in range(num_requests))
    ]


@contextlib.contextmanager
def _a_core_for_the_metronome() -> Iterator[int | None]:
    """Keep this process, and the workers it will start, off the last core; None where there is only one."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    if len(cores) < 2:
        yield None
        return
    try:
        os.sched_setaffinity(0, cores - {max(cores)})
        yield max(cores)
    finally:
        os.sched_setaffinity(0, cores)
