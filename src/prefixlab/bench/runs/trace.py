"""The trace run: start cold, send each request of a trace at its time, check the hits against an ideal cache.

Owns the order of things; reading, scaling and prompts are the workload's. Open loop: a slow server does not
slow the arrivals down, so latencies are told both from the schedule and from sending.

Invariant: what is expected of the cache is the ideal (infinite, every earlier request done): requests that
overlap, and eviction, can only take from it.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from prefixlab.bench.calibrate.store import calibration_notes
from prefixlab.bench.client_notes import client_notes
from prefixlab.bench.loadgen.driver import OnProgress
from prefixlab.bench.loadgen.health import ClientHealth
from prefixlab.bench.loadgen.plan import Load, Planned
from prefixlab.bench.metrics.summary import Metrics, summarise
from prefixlab.bench.records.record import Record
from prefixlab.bench.targets.cold_start import Coldness, ColdStart
from prefixlab.bench.targets.endpoint import Endpoint
from prefixlab.bench.verdict import CacheCheck, Verdict, check_cache, delivery_notes
from prefixlab.bench.workloads.trace import (
    Fitting,
    Trace,
    fit_trace,
    ideal_cached_tokens,
    make_probe,
    make_prompts,
)
from prefixlab.bench.workloads.wording import IdWording, Prompt
from prefixlab.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class TraceRun:
    """A trace as it was replayed.

    Attributes:
        trace: after scaling and cutting.
        health: how well the client itself did.
        interrupted: it was ended early; its records say how far it came.
    """

    trace: Trace
    fitting: Fitting
    speedup: float
    cold_start: ColdStart
    salt: int
    records: tuple[Record, ...]
    metrics: Metrics
    check: CacheCheck
    notes: tuple[str, ...]
    health: ClientHealth
    interrupted: bool


def run_trace(
    endpoint: Endpoint,
    trace: Trace,
    *,
    length_scale: float,
    max_len: int | None,
    speedup: float,
    seed: int,
    on_progress: OnProgress,
) -> TraceRun:
    """Replay `trace`, up to its end or an interrupt.

    Raises:
        ConfigError: the trace cannot be scaled so, or its prompts cannot be made.
        TargetError: the server fails a request that is not measured.
        KeyboardInterrupt: it was interrupted before anything was measured.
    """
    if not isinstance(endpoint.wording, IdWording):
        raise ConfigError("bench trace sends token ids: use a backend that takes them, not chat")
    limit = min((n for n in (max_len, endpoint.facts.max_model_len) if n is not None), default=None)
    fitted, fitting = fit_trace(trace, length_scale=length_scale, max_len=limit)
    vocabulary = endpoint.wording.vocabulary
    num_probe_tokens = endpoint.probe_tokens if limit is None else min(endpoint.probe_tokens, limit - 1)
    salt = 0
    cold_start = endpoint.start_cold(Prompt(make_probe(vocabulary, num_probe_tokens, seed=seed)))
    if cold_start.coldness is Coldness.SALTED:
        salt = secrets.randbits(62) | 1
    prompts = make_prompts(fitted, vocabulary, seed=seed, salt=salt)
    expected: list[int | None] = [None] * len(prompts)
    if endpoint.expects_miss is not None:
        expected = [0] * len(prompts)
    elif endpoint.page_size is not None:
        expected = list(ideal_cached_tokens(prompts, endpoint.page_size))
    plan = [
        Planned(
            request=endpoint.request(Prompt(prompt), f"trace-{number}", request.num_output_tokens),
            num_prompt_tokens=len(prompt),
            num_expected_cached_tokens=expected[number],
            offset_s=request.offset_s / speedup,
        )
        for number, (prompt, request) in enumerate(zip(prompts, fitted.requests, strict=True))
    ]
    load = Load(open_loop=True, num_workers=endpoint.num_workers)
    drive = endpoint.driver.run(plan, load, on_progress=on_progress)
    check = check_cache(drive.table)
    metrics = summarise(drive.table, planned=len(plan), open_loop=True)
    return TraceRun(
        trace=fitted,
        fitting=fitting,
        speedup=speedup,
        cold_start=cold_start,
        salt=salt,
        records=tuple(drive.records),
        metrics=metrics,
        check=check,
        notes=(
            *endpoint.warnings,
            *([endpoint.simulated] if endpoint.simulated else []),
            *(
                ["interrupted: the figures are of the requests that had finished"]
                if drive.interrupted
                else []
            ),
            f"prompts made of {vocabulary.describe()}",
            *_notes(fitted, fitting, cold_start, check),
            *delivery_notes(drive.table, ignore_eos=endpoint.ignore_eos),
            *client_notes(drive.health, open_loop=True),
            *calibration_notes(drive.health, metrics.output_throughput),
        ),
        health=drive.health,
        interrupted=drive.interrupted,
    )


def _notes(trace: Trace, fitting: Fitting, cold_start: ColdStart, check: CacheCheck) -> list[str]:
    notes = [f"cold start {cold_start.coldness.value}: {cold_start.detail}"]
    if fitting.length_scale != 1:
        notes.append(
            f"lengths and blocks scaled by {fitting.length_scale:g}: blocks of {trace.block_size} tokens"
        )
    if fitting.num_cut:
        notes.append(f"{fitting.num_cut} of {len(trace.requests)} requests cut to {fitting.max_len} tokens")
    if check.detail:
        notes.append(check.detail)
    if check.verdict is Verdict.LESS:
        notes.append(
            "expected is an ideal cache's: no limit, every earlier request done; overlap and eviction take"
        )
    return notes
