"""Fidelity: how near a replay came to the trace, in lengths, in sharing and in time.

Owns that comparison. Lengths are those of the trace after it was made to fit, against what the server
counted; sharing is what a cache that forgets nothing would serve of the recorded prompts, against the same of
the prompts as they were made, token by token; time is when requests went, against when they should have.

Invariant: nothing is taken from how prompts are made: sharing is found in the tokens themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from prefixlab.bench.records.table import RecordTable
from prefixlab.bench.workloads.arrivals import FloatArray
from prefixlab.bench.workloads.sketch import IntArray, Sketches
from prefixlab.bench.workloads.wording import common_prefix
from prefixlab.core.block_hash import TokenIds

MOST_TOKENS = 1 << 26
"""Of prompts looked into for sharing: a quarter of a GiB where nothing is shared, and some seconds."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """The requests as the trace has them, before anything was scaled, cut or sped up.

    Attributes:
        hit_rate: the part of all prompt tokens that a cache which forgets nothing would have served.
        duration_s: from the first request to the last.
    """

    num_prompt_tokens: int
    num_output_tokens: int
    hit_rate: float
    duration_s: float

    @classmethod
    def of(cls, sketches: Sketches) -> Recorded:
        offsets_s = sketches.offsets_s
        return cls(
            int(sketches.prompt_tokens.sum()),
            int(sketches.output_tokens.sum()),
            ideal_hit_rate(sketches.shared_tokens, sketches.prompt_tokens),
            0.0 if offsets_s is None else float(offsets_s[-1] - offsets_s[0]),
        )


@dataclass(frozen=True, slots=True)
class Lengths:
    """Of the requests that succeeded and whose tokens the server counted.

    Attributes:
        planned, counted: tokens of all of them.
        largest_difference: of one request, counted less planned: the one furthest from 0.
    """

    num_counted: int
    num_exact: int
    planned: int
    counted: int
    largest_difference: int

    @classmethod
    def of(cls, planned: IntArray, counted: IntArray) -> Lengths:
        differences = counted - planned
        furthest = int(differences[np.abs(differences).argmax()]) if len(differences) else 0
        return cls(
            len(counted), int((differences == 0).sum()), int(planned.sum()), int(counted.sum()), furthest
        )

    def __str__(self) -> str:
        if not self.num_counted:
            return "not counted by the server"
        if self.num_exact == self.num_counted:
            return f"{self.num_exact:,} of {self.num_counted:,} exact, {self.counted:,} tokens"
        return (
            f"{self.num_exact:,} of {self.num_counted:,} exact, the furthest {self.largest_difference:+,}, "
            f"{self.counted:,} tokens for {self.planned:,}"
        )


@dataclass(frozen=True, slots=True)
class Sharing:
    """Hit rates are those of a cache that forgets nothing, by tokens, in the order of the trace.

    Attributes:
        recorded: of the trace before it was made to fit.
        fitted: of what was to be sent.
        sent: found in the prompts made.
        num_exact: of the `num_checked` first requests, those that share just as many tokens with earlier ones
            as the trace says.
        num_template_tokens: at the start of every prompt, whatever it shares besides.
        in_words: prompts went as text, of which the server may make other tokens than are compared here.
    """

    recorded: float
    fitted: float
    sent: float
    num_checked: int
    num_exact: int
    num_template_tokens: int = 0
    in_words: bool = False

    def __str__(self) -> str:
        exact = "exact in words, in" if self.in_words else "exact in"
        exact += " all" if self.num_exact == self.num_checked else f" {self.num_exact:,} of"
        template = self.num_template_tokens
        besides = f", all share a chat template's {template} tokens besides" if template else ""
        return (
            f"sharing {exact} {self.num_checked:,} prompts, ideal hit rate {self.sent:.5f} for "
            f"{self.fitted:.5f} (recorded {self.recorded:.5f}){besides}"
        )


@dataclass(frozen=True, slots=True)
class Timing:
    """How late requests went, and how long sending took: recorded, intended, realised.

    Attributes:
        scheduled_s, realised_s: from the first to the last; of several repeats their mean, of a run that was
            resumed without the pause.
        num_off_schedule: requests that a break cut off: sent again at once as the run was resumed, they have
            no lag.
    """

    lag_p50_s: float
    lag_p99_s: float
    lag_max_s: float
    recorded_s: float
    scheduled_s: float
    realised_s: float
    num_off_schedule: int = 0

    def __str__(self) -> str:
        lags = "/".join(f"{lag * 1e3:.3g}" for lag in (self.lag_p50_s, self.lag_p99_s, self.lag_max_s))
        return (
            f"sent {lags} ms late (p50/p99/max), over {self.realised_s:,.2f} s for {self.scheduled_s:,.2f} "
            f"(recorded {self.recorded_s:,.2f})"
            + (
                f"; resumed, {self.num_off_schedule:,} went again off the schedule"
                if self.num_off_schedule
                else ""
            )
        )


@dataclass(frozen=True, slots=True)
class Fidelity:
    """See the module.

    Attributes:
        timing: None in closed loop, where only the order is the trace's, and where nothing was sent.
    """

    prompts: Lengths
    outputs: Lengths
    sharing: Sharing
    timing: Timing | None

    def __str__(self) -> str:
        times = "the trace's order only, not its times" if self.timing is None else str(self.timing)
        return f"prompts {self.prompts}; outputs {self.outputs}; {self.sharing}; {times}"

    def keys(self) -> dict[str, Any]:
        """For results in JSON."""
        return asdict(self)


def fidelity_of(
    recorded: Recorded,
    sketches: Sketches,
    prompts: Iterable[TokenIds],
    table: RecordTable,
    *,
    timed: bool,
    stretches: Sequence[Sequence[RecordTable]] | None = None,
    num_template_tokens: int = 0,
    in_words: bool = False,
) -> Fidelity:
    """Compare.

    Args:
        sketches: what was to be sent.
        prompts: as they were made, in that order; so many are looked into as MOST_TOKENS allow.
        table: what became of them, of all repeats.
        timed: each was to go at its own time.
        stretches: of each repeat, all that was sent in each stretch, where it was resumed; the times of a
            later one begin where the one before came to. None: `table` is one repeat that was not.
        num_template_tokens: that a chat template puts before every prompt.
        in_words: `prompts` went as text, of which the server may make other tokens.
    """
    answered = table.ok & (table.num_prompt_tokens >= 0)
    return Fidelity(
        Lengths.of(table.planned_prompt_tokens[answered], table.num_prompt_tokens[answered]),
        Lengths.of(table.planned_output_tokens[table.ok], table.num_output_tokens[table.ok]),
        replace(sharing_of(recorded, sketches, prompts, num_template_tokens), in_words=in_words),
        _timing(recorded, [[table]] if stretches is None else stretches) if timed else None,
    )


def sharing_of(
    recorded: Recorded, sketches: Sketches, prompts: Iterable[TokenIds], num_template_tokens: int = 0
) -> Sharing:
    some = list(_shared_with_earlier(_within(prompts, MOST_TOKENS)))
    shared = np.array([found for found, _ in some], np.int64)
    lengths = np.array([length for _, length in some], np.int64)
    wanted = sketches.shared_tokens[: len(some)]
    floor = np.where(np.arange(len(some)) > 0, num_template_tokens, 0)
    return Sharing(
        recorded.hit_rate,
        ideal_hit_rate(wanted, sketches.prompt_tokens[: len(some)]),
        ideal_hit_rate(shared, lengths),
        len(some),
        int((shared == np.maximum(wanted, floor)).sum()),
        num_template_tokens,
    )


def ideal_hit_rate(shared_tokens: IntArray, prompt_tokens: IntArray) -> float:
    total = int(prompt_tokens.sum())
    return int(shared_tokens.sum()) / total if total else 0.0


def _timing(recorded: Recorded, repeats: Sequence[Sequence[RecordTable]]) -> Timing | None:
    lags: list[FloatArray] = []
    scheduled_s = realised_s = 0.0
    num_off_schedule = 0
    for stretches in repeats:
        goes_on = False
        for table in stretches:
            sent = ~np.isnan(table.sent_s)
            if not sent.any():
                continue
            intended_s, sent_s = table.intended_s[sent], table.sent_s[sent]
            # what was due before a break goes as the next stretch begins
            kept = intended_s > 0 if goes_on else np.ones(len(intended_s), np.bool_)
            num_off_schedule += int(np.sum(~kept))
            lags.append((sent_s - intended_s)[kept])
            if kept.any():
                scheduled_s += float(intended_s[kept].max() - (0.0 if goes_on else intended_s.min()))
                realised_s += float(sent_s[kept].max() - (0.0 if goes_on else sent_s.min()))
            goes_on = True
    every = np.concatenate([np.empty(0), *lags])
    if not len(every):
        return None
    p50, p99 = np.percentile(every, (50, 99)).tolist()
    return Timing(
        p50,
        p99,
        float(every.max()),
        recorded.duration_s,
        scheduled_s / len(repeats),
        realised_s / len(repeats),
        num_off_schedule,
    )


def _within(prompts: Iterable[TokenIds], most_tokens: int) -> Iterator[TokenIds]:
    """From the first on, so many as hold no more than that; the first in any case."""
    num_tokens = 0
    for number, prompt in enumerate(prompts):
        num_tokens += len(prompt)
        if number and num_tokens > most_tokens:
            return
        yield prompt


@dataclass(slots=True)
class _Edge:
    """Tokens that follow one another in every prompt that goes this way, and what comes after them."""

    tokens: TokenIds
    next: dict[int, _Edge] = field(default_factory=dict)


def _shared_with_earlier(prompts: Iterable[TokenIds]) -> Iterator[tuple[int, int]]:
    """Of each prompt, how many leading tokens an earlier one has too, and its length."""
    firsts: dict[int, _Edge] = {}
    for prompt in prompts:
        shared, here = 0, firsts
        while shared < len(prompt):
            edge = here.get(int(prompt[shared]))
            if edge is None:
                here[int(prompt[shared])] = _Edge(prompt[shared:].copy())
                break
            same = common_prefix(edge.tokens, prompt[shared:])
            shared += same
            if same < len(edge.tokens) and shared < len(prompt):
                rest = _Edge(edge.tokens[same:], edge.next)
                edge.tokens, edge.next = edge.tokens[:same], {int(rest.tokens[0]): rest}
            here = edge.next
        yield shared, len(prompt)
