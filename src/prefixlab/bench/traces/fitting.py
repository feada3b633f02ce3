"""Making a trace fit what it is replayed on: which of its requests, how long, how fast.

Owns what is left out and what is changed, and says so: everything done stands in the notes of the trace that
comes out. Whether an option makes sense is the settings' business (`config/trace.py`).

Invariant: requests that shared a beginning share it afterwards, as far as both still reach; nothing is left
out or changed without a note.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from prefixlab.bench.traces.trace import Trace
from prefixlab.bench.workloads.sketch import IntArray
from prefixlab.core.errors import ConfigError

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Fitting:
    """What was done to lengths and times: for the report.

    Attributes:
        num_cut: requests cut to `max_len`.
        num_outputs_changed: outputs raised or cut to their bounds.
    """

    length_scale: float = 1.0
    max_len: int | None = None
    speedup: float = 1.0
    num_cut: int = 0
    num_outputs_changed: int = 0


def choose_requests(
    trace: Trace,
    *,
    slice_start_s: float = 0.0,
    slice_duration_s: float | None = None,
    min_isl: int | None = None,
    max_isl: int | None = None,
    max_turns: int | None = None,
    num_requests: int = 0,
) -> Trace:
    """A window of a trace, of it the prompts of certain lengths, of these the first so many.

    Times count from the first that is left. A turn whose turn before is left out has no think time.

    Args:
        slice_start_s, slice_duration_s: of the trace's own times; the end is not of the window.
        min_isl, max_isl: recorded prompt tokens, both included.
        max_turns: of each session.

    Raises:
        ConfigError: nothing is left, or the trace lacks what an option is about.
    """
    kept = np.ones(len(trace), np.bool_)
    notes: list[str] = []
    if slice_start_s or slice_duration_s is not None:
        if not trace.has_times:
            raise ConfigError(
                f"{trace.name} has no times to take a window of (--slice-start, --slice-duration)"
            )
        end_s = np.inf if slice_duration_s is None else slice_start_s + slice_duration_s
        kept &= (trace.offsets_s >= slice_start_s) & (trace.offsets_s < end_s)
        until = "on" if slice_duration_s is None else f"to {end_s:g} s"
        notes.append(f"of {len(trace):,} requests the {kept.sum():,} from {slice_start_s:g} s {until}")
    outside = np.zeros(len(trace), np.bool_)
    if min_isl is not None:
        outside |= trace.prompt_tokens < min_isl
    if max_isl is not None:
        outside |= trace.prompt_tokens > max_isl
    if num_left_out := int((kept & outside).sum()):
        bounds = f"{'1' if min_isl is None else f'{min_isl:,}'} … {'' if max_isl is None else f'{max_isl:,}'}"
        notes.append(f"{num_left_out:,} requests with prompts outside {bounds.rstrip()} tokens left out")
    kept &= ~outside
    if max_turns is not None:
        if trace.turns is None:
            raise ConfigError(f"{trace.name} has no sessions to count turns of (--agentic-max-turns)")
        late = trace.turns >= max_turns
        if num_left_out := int((kept & late).sum()):
            notes.append(f"{num_left_out:,} turns behind the first {max_turns:,} of their session left out")
        kept &= ~late
    rows = np.flatnonzero(kept)
    if not len(rows):
        raise ConfigError(f"{trace.name}: none of its {len(trace):,} requests is left: {'; '.join(notes)}")
    if num_requests and num_requests < len(rows):
        notes.append(f"the first {num_requests:,} of {len(rows):,} requests")
        rows = rows[:num_requests]
    if len(rows) == len(trace):
        return replace(trace, notes=(*trace.notes, *notes))
    chosen = trace.take(rows)
    return replace(chosen, think_s=think_s_of(trace, rows), notes=(*trace.notes, *notes))


def think_s_of(trace: Trace, rows: IntArray) -> npt.NDArray[np.float64] | None:
    """Of the chosen rows, where the turn before was chosen too."""
    if trace.think_s is None or trace.turns is None or trace.session_ids is None:
        return None
    _, sessions = np.unique(np.asarray(trace.session_ids), return_inverse=True)
    order = np.lexsort((trace.turns, sessions))
    kept = np.zeros(len(trace), np.bool_)
    kept[rows] = True
    follows = np.zeros(len(trace), np.bool_)
    follows[order[1:]] = kept[order[:-1]] & (np.diff(sessions[order]) == 0)
    think_s: npt.NDArray[np.float64] = np.where(follows, trace.think_s, np.nan)[rows]
    return think_s


def fit_trace(
    trace: Trace,
    *,
    min_osl: int | None = None,
    max_osl: int | None = None,
    length_scale: float = 1.0,
    max_len: int | None = None,
    speedup: float = 1.0,
) -> tuple[Trace, Fitting]:
    """Bound outputs, scale blocks and lengths together, cut what is still too long, then change the speed.

    Scaling keeps the sharing: a block becomes a smaller or larger block. Cutting takes the end of prompts, so
    what remains is shared as before; output is cut to half of `max_len` first.

    Args:
        min_osl, max_osl: bounds of recorded outputs, which are raised or cut to them.
        speedup: 2 replays twice as fast, think times too.

    Raises:
        ConfigError: the scaled block is not a whole number of tokens, or there are no times to change.
    """
    if speedup != 1 and not trace.has_times:
        raise ConfigError(f"{trace.name} has no times to replay faster or slower (--speedup, --time-scale)")
    block_size = scaled_block(trace, length_scale)
    notes = list(trace.notes)
    bounded = np.clip(trace.output_tokens, min_osl, max_osl) if min_osl or max_osl else trace.output_tokens
    num_changed = int((bounded != trace.output_tokens).sum())
    if num_changed:
        notes.append(f"{num_changed:,} outputs raised or cut to {min_osl or 1:,} … {max_osl or 'any'} tokens")
    full, rest = np.divmod(trace.prompt_tokens, trace.block_size)
    if trace.has_ids:
        part = _rounded(rest * length_scale)
        # A part without an id must not grow to a block: a full block has one.
        nameless = np.diff(trace.starts) == full
        part[nameless] = np.minimum(part[nameless], block_size - 1)
        prompt = np.maximum(1, full * block_size + part)
    else:
        prompt = np.maximum(1, _rounded(trace.prompt_tokens * length_scale))
    output = np.maximum(1, _rounded(bounded * length_scale))
    num_cut = 0
    if max_len is not None:
        too_long = prompt + output > max_len
        num_cut = int(too_long.sum())
        output = np.where(too_long, np.minimum(output, max(1, max_len // 2)), output)
        prompt = np.where(too_long, np.minimum(prompt, max_len - output), prompt)
    if length_scale != 1:
        blocks = (
            f" and blocks scaled by {length_scale:g}: blocks of {block_size} token{'s' * (block_size > 1)}"
        )
        notes.append(f"lengths{blocks if trace.has_ids else f' scaled by {length_scale:g}'}")
    if num_cut:
        notes.append(f"{num_cut:,} of {len(trace):,} requests cut to {max_len:,} tokens")
    if speedup != 1:
        notes.append(f"replayed {speedup:g} times as fast as recorded")
    starts, hash_ids = _first_ids(trace, -(-prompt // block_size))
    fitted = replace(
        trace,
        block_size=block_size,
        offsets_s=trace.offsets_s / speedup,
        prompt_tokens=prompt,
        output_tokens=output,
        starts=starts,
        hash_ids=hash_ids,
        think_s=None if trace.think_s is None else trace.think_s / speedup,
        notes=tuple(notes),
    )
    return fitted, Fitting(length_scale, max_len, speedup, num_cut, num_changed)


def scaled_block(trace: Trace, length_scale: float) -> int:
    """Tokens of a block after scaling. A trace without blocks may be scaled by anything."""
    if not trace.has_ids:
        return trace.block_size
    exact = trace.block_size * length_scale
    block_size = round(exact)
    if block_size < 1 or abs(block_size - exact) > 1e-9 * max(1.0, exact):
        raise ConfigError(
            f"--length-scale {length_scale:g} makes {exact:g} tokens of a block of {trace.block_size}; it "
            "must be a whole number, at least 1"
        )
    return block_size


def _rounded(lengths: npt.NDArray[np.floating[Any]]) -> IntArray:
    whole: IntArray = np.rint(lengths).astype(np.int64)
    return whole


def _first_ids(trace: Trace, most: IntArray) -> tuple[IntArray, IntArray]:
    """Of each request at most so many ids: starts and ids."""
    counts = np.diff(trace.starts)
    kept = np.minimum(counts, most)
    if (kept == counts).all():
        return trace.starts, trace.hash_ids
    starts = np.concatenate(([0], np.cumsum(kept)))
    place = np.arange(len(trace.hash_ids)) - np.repeat(trace.starts[:-1], counts)
    ids: IntArray = trace.hash_ids[place < np.repeat(kept, counts)]
    return starts, ids
