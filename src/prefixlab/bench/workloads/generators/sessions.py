"""Sessions: requests that wait for one another, turn after turn, each prompt with all that was said before.

Owns two kinds. *Live* sessions are made up: a later turn is only what is new, behind the prompt before it and
what the server really answered. *Recorded* ones are a trace's: their prompts are as they were then, whatever
is answered now. Both come session by session, for in closed loop a slot is a session's until it ends.

Invariants: a later turn waits for the one before it, never for another; more sessions begin like fewer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from prefixlab.bench.config.dataset import LengthRange, length_range
from prefixlab.bench.config.sessions import DEFAULT_NUM_SESSIONS, DEFAULT_NUM_TURNS, SessionsConfig
from prefixlab.bench.traces.fidelity import Recorded
from prefixlab.bench.traces.trace import Trace
from prefixlab.bench.workloads.draws import Draws
from prefixlab.bench.workloads.generators.random import draw_lengths
from prefixlab.bench.workloads.sketch import NOBODY, FloatArray, Sketches
from prefixlab.bench.workloads.workload import Workload
from prefixlab.core.errors import ConfigError

_FIRST, _LATER, _OUTPUTS, _THINK = range(4)
_SYSTEM_KEY = 0
_LOGNORMAL_SIGMA = 1.0


@dataclass(frozen=True, slots=True)
class SessionShape:
    """What live sessions to make.

    Attributes:
        first, later: new prompt tokens of a first turn behind the system prompt, and of each after it.
        num_system_tokens: at the start of every session, the same in all.
    """

    num_sessions: int
    num_turns: int
    first: LengthRange
    later: LengthRange
    outputs: LengthRange
    num_system_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ThinkTime:
    """How long a session waits between an answer and its next turn: constant, exponential or lognormal."""

    mean_s: float
    distribution: str = "constant"

    def draw(self, count: int, *key: int) -> FloatArray:
        """Shape (count,). `key`: whole numbers ≥ 0 that the times depend on."""
        draws = Draws(*key, _THINK)
        if self.distribution == "exponential":
            return -np.log(draws.uniform(count)) * self.mean_s
        if self.distribution == "lognormal":
            # exp(σN - σ²/2) has mean 1
            return np.exp(_LOGNORMAL_SIGMA * draws.normal(count) - _LOGNORMAL_SIGMA**2 / 2) * self.mean_s
        return np.full(count, self.mean_s)

    def __str__(self) -> str:
        return f"{self.mean_s:g} s" + ("" if self.distribution == "constant" else f", {self.distribution}")


def made_up_sessions(options: SessionsConfig, num_sessions: int | None, *key: int) -> Workload:
    """As the settings say; None: as many as by default. `key`: see `live_workload`."""
    shape = _shape(options, DEFAULT_NUM_SESSIONS if num_sessions is None else num_sessions)
    return live_workload(shape, think_time(options) or ThinkTime(0.0), *key)


def think_time(options: SessionsConfig) -> ThinkTime | None:
    """What was asked for, if anything."""
    mean_s = options.think_time
    return None if mean_s is None else ThinkTime(mean_s, options.think_time_distribution)


def _shape(options: SessionsConfig, num_sessions: int) -> SessionShape:
    def spread(length: int) -> LengthRange:
        return length_range(length, options.turn_range_ratio, as_sglang=True)

    return SessionShape(
        num_sessions=num_sessions,
        num_turns=DEFAULT_NUM_TURNS if options.num_turns is None else options.num_turns,
        first=spread(options.turn_len if options.first_turn_len is None else options.first_turn_len),
        later=spread(options.turn_len),
        outputs=spread(options.turn_output_len),
        num_system_tokens=options.system_len,
    )


def live_workload(shape: SessionShape, think: ThinkTime, *key: int) -> Workload:
    """`key`: whole numbers ≥ 0 that lengths and think times depend on."""
    later = (
        f", then {shape.later} more each, behind what the server answered ({shape.outputs} tokens)"
        if shape.num_turns > 1
        else f", outputs of {shape.outputs}"
    )
    system = f"{shape.num_system_tokens:,} that all share, and " if shape.num_system_tokens else ""
    notes = (
        f"{shape.num_sessions:,} sessions of {shape.num_turns:,} turns: first prompts of {system}"
        f"{shape.first} tokens{later}",
        *((f"think time of {think} before each later turn",) if think.mean_s else ()),
    )
    flags = "--num-turns, --turn-len, --first-turn-len, --system-len and --turn-output-len"
    return Workload(sketch_live(shape, think, *key), notes=notes, length_flags=flags)


def sketch_live(shape: SessionShape, think: ThinkTime, *key: int) -> Sketches:
    num_sessions, num_turns = shape.num_sessions, shape.num_turns
    count = num_sessions * num_turns
    rows = np.arange(count)
    turns = rows % num_turns
    is_first = turns == 0
    sizes = draw_lengths(shape.later, count, *key, _LATER)
    sizes[is_first] = draw_lengths(shape.first, num_sessions, *key, _FIRST)
    keys, starts = -1 - rows, np.arange(count + 1)
    if shape.num_system_tokens:
        firsts = np.flatnonzero(is_first)
        keys = np.insert(keys, firsts, _SYSTEM_KEY)
        sizes = np.insert(sizes, firsts, shape.num_system_tokens)
        starts += np.concatenate(([0], np.cumsum(is_first)))
    return Sketches(
        starts,
        keys,
        sizes,
        draw_lengths(shape.outputs, count, *key, _OUTPUTS),
        after=np.where(is_first, NOBODY, rows - 1),
        delays_s=np.where(is_first, 0.0, think.draw(count, *key)),
        continues=~is_first,
        session_ids=[f"session-{number}" for number in (rows // num_turns).tolist()],
        turns=turns,
    )


@lru_cache(maxsize=2)
def first_sessions(trace: Trace, num_sessions: int | None = None, num_turns: int | None = None) -> Trace:
    """The sessions of a trace that begin first, and of each the first turns; None: all. One session after
    another, turns counted from 0.

    Raises:
        ConfigError: the trace knows no sessions.
    """
    if trace.session_ids is None:
        raise ConfigError(
            f"{trace.name} knows no sessions: none of its rows says which conversation it is of; "
            "bench trace replays it at its times"
        )
    numbers: dict[str, int] = {}
    session = np.fromiter((numbers.setdefault(name, len(numbers)) for name in trace.session_ids), np.int64)
    turn = np.zeros(len(trace), np.int64) if trace.turns is None else trace.turns
    order = np.lexsort((turn, session))  # stable: without turns, in the order of time
    session = session[order]
    begins = np.flatnonzero(np.diff(session, prepend=-1))
    counts = np.diff(begins, append=len(session))
    turn = np.arange(len(session)) - np.repeat(begins, counts)
    keep = turn < (len(trace) if num_turns is None else num_turns)
    keep &= session < (len(trace) if num_sessions is None else num_sessions)
    return replace(trace.take(order[keep]), turns=turn[keep])


@lru_cache(maxsize=4)
def recorded_workload(
    trace: Trace, think: ThinkTime | None = None, *key: int, unfitted: Trace | None = None
) -> Workload:
    """Of sessions as `first_sessions` gives them.

    Args:
        think: instead of the recorded think times.
        key: whole numbers ≥ 0 that those depend on.
        unfitted: the same requests before anything was done to their lengths, for the report's fidelity.
    """
    sketches = sketch_recorded(trace, think, *key)
    assert sketches.turns is not None
    later = sketches.turns > 0
    notes = [
        f"{int((~later).sum()):,} sessions of {trace.name}, {len(sketches):,} turns; prompts are as "
        "recorded, so what is answered now is in none of them",
        *trace.notes,
    ]
    if not trace.has_ids:
        notes.append(f"{trace.name} does not say what prompts share: no turn holds the one before it")
    if think is not None:
        notes.append(f"think time of {think} before each later turn, not the recorded one")
    elif trace.think_s is not None and not np.isnan(trace.think_s).all():
        notes.append("later turns wait for the answer before, and then as long as was recorded")
    elif later.any():
        notes.append(
            f"{trace.name} does not say how long users thought: later turns follow at once "
            "(--think-time says how long)"
        )
    recorded = None
    if unfitted is not None:
        recorded = Recorded.of(replace(unfitted.sketches, offsets_s=None))
    flags = "--num-turns, --length-scale, --max-len, --max-isl and --max-osl"
    return Workload(sketches, notes=tuple(notes), length_flags=flags, recorded=recorded)


def sketch_recorded(trace: Trace, think: ThinkTime | None = None, *key: int) -> Sketches:
    """See `recorded_workload`. Without times of arrival: a later turn goes when the one before has ended."""
    assert trace.turns is not None, "as first_sessions gives them"
    is_first = trace.turns == 0
    if think is not None:
        delays = think.draw(len(trace), *key)
    else:
        delays = np.zeros(len(trace)) if trace.think_s is None else np.nan_to_num(trace.think_s)
    return replace(
        trace.sketches,
        offsets_s=None,
        after=np.where(is_first, NOBODY, np.arange(len(trace)) - 1),
        delays_s=np.where(is_first, 0.0, delays),
    )
