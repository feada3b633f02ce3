"""The trace workload: a recorded trace, as much of it as asked for, made to fit what it is sent to.

Owns the order of things: read, choose, remember what was recorded, then scale, cut and speed up. How each of
these is done is in `bench/traces`.

Invariant: the same file and settings make the same workload; while a file does not change it is read once.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from prefixlab.bench.config.dataset import TRACE_DATASETS
from prefixlab.bench.config.serve import ServeConfig
from prefixlab.bench.config.sessions import SessionsConfig
from prefixlab.bench.config.trace import TraceConfig, names_in
from prefixlab.bench.report.console import counted
from prefixlab.bench.targets.endpoint import Endpoint
from prefixlab.bench.targets.several import SeveralEndpoints
from prefixlab.bench.traces.fidelity import Recorded
from prefixlab.bench.traces.fitting import Fitting, choose_requests, fit_trace
from prefixlab.bench.traces.formats.format import DEFAULT_SESSION_INTERVAL_S
from prefixlab.bench.traces.reading import read_trace
from prefixlab.bench.traces.trace import Trace
from prefixlab.bench.workloads.files.conversations import holds_conversations
from prefixlab.bench.workloads.sketch import Sketches
from prefixlab.bench.workloads.wording import Wording
from prefixlab.bench.workloads.workload import Workload

LENGTH_FLAGS = "the trace's lengths, --length-scale, --max-len, --max-isl and --max-osl"

ROOM = 3
"""Tokens that are enough to tell any number of prompts apart, in any vocabulary of words."""


def trace_workload(config: ServeConfig, count: int | None) -> Workload:
    """Raises ConfigError where the file cannot be read, or nothing of it is left."""
    assert config.dataset.dataset_path is not None, "checked with the settings"
    path = config.dataset.dataset_path
    chosen, recorded = _chosen(path, _stamp(path), config.trace.choosing, count)
    return _fitted(chosen, recorded, config.trace)


def chosen_trace(config: ServeConfig) -> Trace:
    """What is replayed of it, not yet made to fit: for those who pace it in another way."""
    assert config.dataset.dataset_path is not None, "checked with the settings"
    path = config.dataset.dataset_path
    return _chosen(path, _stamp(path), config.trace.choosing, None)[0]


def _stamp(path: str) -> tuple[int, int]:
    """Another one when the file is."""
    try:
        status = Path(path).stat()
    except OSError:  # whoever reads it says why
        return 0, 0
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=2)
def _chosen(
    path: str, stamp: tuple[int, int], options: TraceConfig, count: int | None
) -> tuple[Trace, Recorded]:
    trace = read_trace(
        path,
        format=options.trace_format,
        num_requests=0 if options.chooses else count or 0,
        block_size=options.block_size,
        session_interval_s=options.session_interval or DEFAULT_SESSION_INTERVAL_S,
        ignore_fields=names_in(options.ignore_fields),
        sort=options.sort,
    )
    if not options.chooses and len(trace) == count:
        first = f"the first {counted(len(trace), 'request')} of {trace.name}"
        trace = replace(trace, notes=(*trace.notes, first))
    else:
        trace = choose_requests(
            trace,
            slice_start_s=options.slice_start,
            slice_duration_s=options.slice_duration,
            min_isl=options.min_isl,
            max_isl=options.max_isl,
            max_turns=options.agentic_max_turns,
            num_requests=count or 0,
        )
    return trace, Recorded.of(trace.sketches)


@lru_cache(maxsize=8)
def _fitted(chosen: Trace, recorded: Recorded, options: TraceConfig) -> Workload:
    trace, fitting = made_to_fit(chosen, options)
    notes = list(trace.notes)
    if not trace.has_ids:
        notes.append(f"{trace.name} says nothing of what its prompts share: they share nothing")
    return Workload(
        sketches=trace.sketches,
        notes=tuple(notes),
        length_flags=LENGTH_FLAGS,
        recorded=recorded,
        facts={
            "trace": trace.name,
            "block_size": trace.block_size if trace.has_ids else None,
            "length_scale": fitting.length_scale,
            "num_cut": fitting.num_cut,
            "speedup": fitting.speedup,
        },
    )


@lru_cache(maxsize=2)
def made_to_fit(chosen: Trace, options: TraceConfig) -> tuple[Trace, Fitting]:
    """Scaled, cut and sped up."""
    return fit_trace(
        chosen,
        min_osl=options.min_osl,
        max_osl=options.max_osl,
        length_scale=options.length_scale or 1.0,
        max_len=options.max_len,
        speedup=options.factor,
    )


def replays_trace(config: ServeConfig) -> bool:
    """Requests are a trace's: at its times, or as sessions."""
    name, path = config.dataset.dataset_name, config.dataset.dataset_path
    if name in TRACE_DATASETS:
        return True
    return name in SessionsConfig.DATASETS and path is not None and not holds_conversations(Path(path))


def within_limits(config: ServeConfig, endpoint: Endpoint) -> ServeConfig:
    """A trace's requests are cut to what the server takes, and its cache holds; other prompts too long for it
    are refused."""
    servers = endpoint.each if isinstance(endpoint, SeveralEndpoints) else (endpoint,)
    limits = [
        size for one in servers for size in (one.facts.max_model_len, one.facts.capacity_tokens) if size
    ]
    if not limits or not replays_trace(config):
        return config
    chosen = config.trace.max_len
    longest = min(limits) if chosen is None else min(chosen, *limits)
    return replace(config, trace=replace(config.trace, max_len=longest))


def with_room(workload: Workload, wording: Wording) -> Workload:
    """Where a chat template needs more of a prompt's first or last block than it has: with the blocks beside
    it in one piece.

    Prompts keep their lengths, but for those shorter than the template; where blocks were joined they share
    some tokens less. How many still share what the trace says, the fidelity of the run tells.
    """
    head, tail = wording.num_head_tokens, wording.num_tail_tokens
    sketches = workload.sketches
    if not (head or tail) or workload.recorded is None or sketches is None:
        return workload
    roomy = _joined(sketches, head + ROOM, tail + ROOM)
    num_longer = int((roomy.prompt_tokens > sketches.prompt_tokens).sum())
    notes = [f"{counted(num_longer, 'prompt')} made longer, to hold the chat template"] if num_longer else []
    return replace(workload, sketches=roomy, notes=(*workload.notes, *notes))


@lru_cache(maxsize=2)
def _joined(sketches: Sketches, least_first: int, least_last: int) -> Sketches:
    """With first pieces of at least so many tokens, and last ones."""
    sizes, nodes = sketches.sizes.tolist(), sketches.trie.nodes.tolist()
    bounds = list(itertools.pairwise(sketches.starts.tolist()))
    # Blocks whose end a short last piece takes: it is split off wherever the block stands, so that all the
    # rest of it goes on being shared.
    split: dict[int, int] = {}
    for start, stop in bounds:
        last, at = sizes[stop - 1], stop - 2
        while last < least_last and at >= start:
            if sizes[at] > least_last:
                split[nodes[at]] = sizes[at] - least_last
                break
            last, at = last + sizes[at], at - 1
    names: dict[tuple[int, ...], int] = {}  # of parts that were split off and of pieces joined at the front
    least_name = int(sketches.keys.max(initial=0)) + 1
    rows = []
    for number, (start, stop) in enumerate(bounds):
        pieces: list[tuple[int, int]] = []
        for key, size, node in zip(
            sketches.keys[start:stop].tolist(), sizes[start:stop], nodes[start:stop], strict=True
        ):
            kept = min(size, split.get(node, size))
            pieces.append((key, kept))
            if kept < size:
                pieces.append((least_name + names.setdefault((node,), len(names)), size - kept))
        path = [pieces[0][0]]
        while pieces[0][1] < least_first and len(pieces) > 1:
            path.append(pieces[1][0])
            joined = least_name + names.setdefault((-1, *path), len(names))
            pieces[:2] = [(joined, pieces[0][1] + pieces[1][1])]
        is_short = False
        while pieces[-1][1] < least_last and len(pieces) > 1:
            is_short = True
            pieces[-2:] = [(0, pieces[-2][1] + pieces[-1][1])]
        least = least_first + least_last if len(pieces) == 1 else least_last
        if is_short or pieces[-1][1] < least:
            pieces[-1] = (-1 - number, max(pieces[-1][1], least))
        rows.append(pieces)
    columns = {name: getattr(sketches, name) for name in ("offsets_s", "session_ids", "turns")}
    return Sketches.of(rows, sketches.output_tokens.tolist(), **columns)
