"""Did the target keep up with the arrivals? A pure function of when requests were due and when they ended.

Owns the rule. In open loop, over the arrivals of the last two thirds of the schedule (the first third fills
the pipe), a run is *saturated* when both hold:

- completions fall behind: over that stretch fewer requests end than arrive, by more than 5 % of the arrivals
  and by more than chance makes of independent arrivals (2 √arrivals);
- waiting grows with it: E2E from intent, mean over the last third of the arrivals, exceeds the first third's
  by at least half of the time it takes that backlog to arrive. (A long answer alone makes completions late,
  and does not make them later and later.)

Or the target *refuses*: of all arrivals more than 5 % were answered 429 or 503, or timed out. Then nothing
need wait, and it cannot carry the load all the same.

Where the first third is too short to fill the pipe, because answers take longer than it lasts, nothing is
said of the rest: a yes needs it as long as the quickest early answer took, a no as long as answers took on
average.

Nor is it told where more than 5 % of the arrivals failed otherwise: what a server does not do takes no time.

A cap on requests in flight on the client's side changes nothing: who waits for a slot has arrived.

Invariant: in closed loop there is no verdict, since a slow target is asked more slowly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from prefixlab.bench.metrics.windows import each_segment
from prefixlab.bench.records.record import Failure, Outcome
from prefixlab.bench.records.table import CODE, BoolArray, RecordTable

FloatArray = npt.NDArray[np.float64]

SHORTFALL = 0.05
FEWEST_ARRIVALS = 10
BUSY_STATUSES = (429, 503)
"""What a server answers that has more to do than it can."""
TIME_OUTS = (Failure.CONNECT_TIMEOUT, Failure.STALLED, Failure.TIMED_OUT)


@dataclass(frozen=True, slots=True)
class Saturation:
    """What the rule saw.

    Attributes:
        offered_rate, completed_rate: requests per second over the last two thirds, arriving and ending well.
        early_e2e_s, late_e2e_s: mean E2E from intent over the first and the last third of the arrivals.
        num_waiting: had come and not ended when the last one came.
        num_arrived: over the whole schedule.
        refused: how many of them were refused, by what they met, such as "answered 503".
        untold: why neither yes nor no can be said; nothing where one can.
    """

    behind: bool
    offered_rate: float
    completed_rate: float
    early_e2e_s: float
    late_e2e_s: float
    num_waiting: int
    num_arrived: int
    refused: Mapping[str, int] = field(default_factory=dict)
    untold: str = ""

    @property
    def refuses(self) -> bool:
        return sum(self.refused.values()) > SHORTFALL * self.num_arrived

    @property
    def saturated(self) -> bool:
        return self.behind or self.refuses

    def __str__(self) -> str:
        if self.untold:
            return f"cannot tell: {self.untold}"
        rates = f"{self.offered_rate:,.1f} requests/s came and {self.completed_rate:,.1f}/s were served"
        if self.refuses:
            shares = (f"{num / self.num_arrived:.0%} {how}" for how, num in self.refused.items())
            rates = f"{rates}; of {self.num_arrived:,} arrivals {', '.join(shares)}"
        if not self.behind:
            return f"{'refusing' if self.refuses else 'kept up'}: {rates}"
        return (
            f"saturated: {rates}; {self.num_waiting:,} were waiting at the end, and end to end went "
            f"from {self.early_e2e_s:.3g} s to {self.late_e2e_s:.3g} s: these latencies grow with the length "
            "of the run"
        )


def judge(
    intended_s: FloatArray,
    ended_s: FloatArray,
    *,
    ok: BoolArray | None = None,
    refused: Mapping[str, int] | None = None,
) -> Saturation | None:
    """The verdict on one stretch of open loop.

    Args:
        intended_s: shape (n,), of every request whose time had come.
        ended_s: shape (n,), the end of its stream; NaN where it was given up or never sent.
        ok: shape (n,), whether it ended well; None: all did that ended.
        refused: how many of them were refused, by what they met.

    Returns: None for too few arrivals to tell.
    """
    if len(intended_s) < FEWEST_ARRIVALS:
        return None
    if intended_s.min() == intended_s.max():
        return _at_once(len(intended_s))
    start_s, end_s = float(intended_s.min()), float(intended_s.max())
    third_s = (end_s - start_s) / 3
    since_s = start_s + third_s
    arrived = int(np.sum((intended_s > since_s) & (intended_s <= end_s)))
    ends = (ended_s > since_s) & (ended_s <= end_s)
    ended = int(np.sum(ends))
    waits_s = ended_s - intended_s
    early_s = waits_s[(intended_s <= since_s) & ~np.isnan(waits_s)]
    late_s = waits_s[(intended_s > end_s - third_s) & ~np.isnan(waits_s)]
    if not arrived or not len(early_s):
        return None
    offered_rate = arrived / (2 * third_s)
    behind = arrived - ended
    # Where nobody of the last third ended at all, their wait is at least what is left of the run.
    early_e2e_s = float(early_s.mean())
    late_e2e_s = float(late_s.mean()) if len(late_s) else max(early_e2e_s, third_s)
    found = Saturation(
        behind=behind > max(SHORTFALL * arrived, 2 * arrived**0.5)
        and late_e2e_s - early_e2e_s >= behind / offered_rate / 2,
        offered_rate=offered_rate,
        completed_rate=int(np.sum(ends if ok is None else ends & ok)) / (2 * third_s),
        early_e2e_s=early_e2e_s,
        late_e2e_s=late_e2e_s,
        num_waiting=len(intended_s) - int(np.sum(ended_s <= end_s)),
        num_arrived=len(intended_s),
        refused=refused or {},
    )
    answer_s = float(early_s.min() if found.behind else np.nanmean(waits_s))
    failed = 0 if ok is None else int(np.sum(~np.isnan(ended_s) & ~ok)) - sum(found.refused.values())
    if not found.saturated and failed > SHORTFALL * len(intended_s):
        return replace(found, untold=f"{failed:,} of {len(intended_s):,} requests failed")
    if found.refuses or (ended and answer_s <= third_s):
        return found
    why = f"the run is shorter than three answers ({3 * answer_s:.3g} s)"
    if answer_s <= third_s:
        why = "no answer ended in the last two thirds of the arrivals"
    return replace(found, behind=False, untold=why)


def _at_once(num_arrived: int) -> Saturation:
    nan = float("nan")
    return Saturation(False, nan, nan, nan, nan, num_arrived, num_arrived, untold="all come at once")


def saturation(table: RecordTable) -> Saturation | None:
    """The verdict on an open-loop run: on its longest segment of which something can be said, of requests
    whose time had come by its end."""
    found: list[tuple[float, Saturation | None]] = []
    given_up = np.isin(table.outcome, [CODE[Outcome.CANCELLED], CODE[Outcome.UNSENT]])
    ended_s = np.where(given_up, np.nan, table.last_s)
    for _, rows in each_segment(table):
        ends = table.last_s[rows & ~np.isnan(table.last_s)]
        if not len(ends):
            continue
        due = rows & (table.intended_s <= ends.max())
        length_s = float(ends.max() - table.intended_s[rows].min())
        found.append((length_s, _judge_rows(table, due, ended_s)))
    told = [(length_s, judged) for length_s, judged in found if judged is not None and not judged.untold]
    return max(told or found, key=lambda one: one[0], default=(0.0, None))[1]


def _judge_rows(table: RecordTable, rows: BoolArray, ended_s: FloatArray) -> Saturation | None:
    return judge(table.intended_s[rows], ended_s[rows], ok=table.ok[rows], refused=_refused(table, rows))


def _refused(table: RecordTable, rows: BoolArray) -> dict[str, int]:
    failed = rows & (table.outcome == CODE[Outcome.FAILED])
    found = {
        f"answered {status}": int(np.sum(failed & (table.http_status == status))) for status in BUSY_STATUSES
    }
    kinds = [name in TIME_OUTS for name in table.failure.names]
    # code -1 is None: of no kind
    found["timed out"] = int(np.sum(failed & np.array([*kinds, False])[table.failure.codes]))
    return {how: num for how, num in found.items() if num}
