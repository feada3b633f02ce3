"""The trace workload: a recorded trace, as much of it as asked for, made to fit what it is sent to.

Owns the order of things: read, choose, remember what was recorded, scale, cut, speed up. How each of these is
done is in `bench/traces`.

Invariant: the same file and settings make the same workload; a file that has not changed is read once.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from prefixlab.bench.config.dataset import TRACE_DATASETS
from prefixlab.bench.config.serve import ServeConfig
from prefixlab.bench.config.trace import TraceConfig
from prefixlab.bench.targets.endpoint import Endpoint
from prefixlab.bench.traces.fidelity import Recorded
from prefixlab.bench.traces.trace import Trace
from prefixlab.bench.workloads.trace import Trace as OldTrace
from prefixlab.bench.workloads.trace import TraceRequest, fit_trace, read_trace
from prefixlab.bench.workloads.workload import Workload


def trace_workload(config: ServeConfig, count: int | None) -> Workload:
    """Raises ConfigError where the file cannot be read, or nothing of it is left."""
    assert config.dataset.dataset_path is not None, "checked with the settings"
    path = Path(config.dataset.dataset_path)
    stamp = path.stat().st_mtime_ns if path.exists() else 0
    return _made(path, stamp, config.trace, count)


@lru_cache(maxsize=8)
def _made(path: Path, stamp: int, options: TraceConfig, count: int | None) -> Workload:
    old = read_trace(path, num_requests=count or 0, block_size=options.block_size)
    recorded = Recorded.of(_columns(old).sketches)
    fitted, fitting = fit_trace(old, length_scale=options.length_scale or 1.0, max_len=options.max_len)
    trace = _columns(fitted)
    trace = replace(trace, offsets_s=trace.offsets_s / options.factor)
    notes = []
    if fitting.length_scale != 1:
        notes.append(f"lengths and blocks scaled by {fitting.length_scale:g}")
    if fitting.num_cut:
        notes.append(f"{fitting.num_cut} of {len(trace)} requests cut to {fitting.max_len} tokens")
    return Workload(
        sketches=trace.sketches,
        notes=tuple(notes),
        length_flags="--max-len and --length-scale",
        recorded=recorded,
        facts={"trace": trace.name, "block_size": trace.block_size, "speedup": options.factor},
    )


def _columns(trace: OldTrace) -> Trace:
    rows: tuple[TraceRequest, ...] = trace.requests
    return Trace(
        trace.name,
        trace.block_size,
        np.array([r.offset_s for r in rows]),
        np.array([r.num_prompt_tokens for r in rows]),
        np.array([r.num_output_tokens for r in rows]),
        np.concatenate(([0], np.cumsum([len(r.hash_ids) for r in rows]))).astype(np.int64),
        np.array([i for r in rows for i in r.hash_ids], np.int64),
    )


def within_limits(config: ServeConfig, endpoint: Endpoint) -> ServeConfig:
    """A trace's requests are cut to what the server takes; other prompts too long for it are refused."""
    limit, chosen = endpoint.facts.max_model_len, config.trace.max_len
    if config.dataset.dataset_name not in TRACE_DATASETS or limit is None:
        return config
    longest = limit if chosen is None else min(chosen, limit)
    return replace(config, trace=replace(config.trace, max_len=longest))
