"""Which figures are compared, by which names, and how each is read off a run's records.

Owns the names (those of result files, and the short ones people type) and the series behind a figure. The
formulas are `metrics/latencies.py`'s and `metrics/windows.py`'s.

Invariant: a figure's value here is the one the run's own report shows.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from prefixlab.bench.compare.bootstrap import FEWEST_VALUES
from prefixlab.bench.compare.series import FloatArray, IntArray, Known, Percentile, Ratio, Sample, Series
from prefixlab.bench.metrics import latencies, windows
from prefixlab.bench.records.table import RecordTable
from prefixlab.core.config import did_you_mean
from prefixlab.core.errors import ConfigError

LATENCIES: dict[str, Callable[[RecordTable], FloatArray] | None] = {
    "ttft": latencies.ttft_s,
    "tpot": latencies.tpot_s,
    "itl": None,
    "e2el": latencies.e2e_s,
    "ttft_from_intent": latencies.ttft_from_intent_s,
    "e2el_from_intent": latencies.e2e_from_intent_s,
    "content_ttft": latencies.content_ttft_s,
}
"""By their name in result keys; ITL alone is of tokens."""
THROUGHPUTS = {
    "request_throughput": "req/s",
    "input_throughput": "tok/s",
    "output_throughput": "tok/s",
    "total_token_throughput": "tok/s",
}
DEFAULT_LATENCIES = ("ttft", "tpot", "itl", "e2el")
DEFAULT_STATISTICS = ("mean", "median", "p99")
THROUGHPUT = "output_throughput"
NUM_SLICES = 240
"""Of each steady window, for how far a throughput may be off."""

_STATISTIC = r"mean|median|p\d+(?:\.\d+)?"


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of a run.

    Attributes:
        key: in result files, as "p99_ttft_ms".
        what: the latency or throughput it is of.
        statistic: "mean", "median", "p99.9" …; "" of a throughput.
    """

    key: str
    what: str
    statistic: str

    @property
    def higher_is_better(self) -> bool:
        return self.what in THROUGHPUTS

    @property
    def unit(self) -> str:
        return THROUGHPUTS.get(self.what, "ms")

    @property
    def percent(self) -> float | None:
        """None of a mean or a throughput."""
        if self.statistic == "median":
            return 50.0
        return float(self.statistic[1:]) if self.statistic.startswith("p") else None

    def __str__(self) -> str:
        """For people, as "p99 TTFT"."""
        if self.what in THROUGHPUTS:
            return self.what.replace("_", " ")
        name, _, rest = self.what.partition("_from_")
        name = f"TTFT of {name.partition('_')[0]}" if name == "content_ttft" else name.upper()
        return f"{self.statistic} {name}{' from ' + rest if rest else ''}"


def of_latency(what: str, statistic: str) -> Figure:
    return Figure(f"{statistic}_{what}_ms", what, statistic)


def of_throughput(what: str) -> Figure:
    return Figure(what, what, "")


def default_figures() -> list[Figure]:
    pairs = itertools.product(DEFAULT_LATENCIES, DEFAULT_STATISTICS)
    return [of_throughput(THROUGHPUT), *(of_latency(what, statistic) for what, statistic in pairs)]


def parse_figures(word: str) -> list[Figure]:
    """What people type: "p99_ttft_ms", "ttft_p99", "throughput"; "ttft" is each of its statistics.

    Raises:
        ConfigError: it is no figure; it names the nearest.
    """
    name = word.strip().lower().removesuffix("_ms").replace("e2e_latency", "e2el").replace("p50", "median")
    if name in ("throughput", "total_throughput"):
        name = {"throughput": THROUGHPUT, "total_throughput": "total_token_throughput"}[name]
    if name in THROUGHPUTS:
        return [of_throughput(name)]
    if name in LATENCIES:
        return [of_latency(name, statistic) for statistic in DEFAULT_STATISTICS]
    whats = "|".join(sorted(LATENCIES, key=len, reverse=True))
    found = re.fullmatch(rf"({_STATISTIC})_({whats})|({whats})_({_STATISTIC})", name)
    if found:
        figure = of_latency(found[2] or found[3], found[1] or found[4])
        if figure.percent is None or 0 < figure.percent < 100:
            return [figure]
    known = [*LATENCIES, *THROUGHPUTS, "throughput", *(figure.key for figure in default_figures())]
    raise ConfigError(
        f"{word!r} is no figure{did_you_mean(name, known)}; a figure is mean, median or p99 of "
        f"{', '.join(LATENCIES)}, as ttft_p99, or one of {', '.join(THROUGHPUTS)}"
    )


def sample_of(figure: Figure, runs: Sequence[RecordTable], *, open_loop: bool) -> Sample:
    """A figure of one side, from the records of each of its repeats."""
    series = [_series(figure, run, _in_order(run), open_loop=open_loop) for run in runs]
    if len(runs) == 1:
        return Sample(series[0], series)
    pool = RecordTable.pool(runs)
    return Sample(_series(figure, pool, _in_order(pool), open_loop=open_loop), series)


def samples_of_pairs(
    figure: Figure, a: Sequence[RecordTable], b: Sequence[RecordTable], *, open_loop: bool
) -> tuple[Sample, Sample] | None:
    """Both sides with the same requests in the same places, as `differ(paired=True)` needs them. None where
    they did not send the same: the same ids, prompts of the same lengths, as many tokens, all of them
    answered; or where the figure is not of the same requests."""
    rows = [same_requests(one, other) for one, other in zip(a, b, strict=False)]
    if len(a) != len(b) or any(found is None for found in rows):
        return None
    pools = (RecordTable.pool(a), RecordTable.pool(b))
    places: tuple[list[IntArray], list[IntArray]] = ([], [])
    before = 0
    for run, found in zip(a, rows, strict=True):
        assert found is not None
        for side, order in zip(places, found, strict=True):
            side.append(order + before)
        before += len(run)
    whole = [
        _series(figure, pool, np.concatenate(side), open_loop=open_loop)
        for pool, side in zip(pools, places, strict=True)
    ]
    if len(whole[0].influence) != len(whole[1].influence) or not _of_the_same(figure, *pools, *places):
        return None
    runs = [[_series(figure, run, _in_order(run), open_loop=open_loop) for run in side] for side in (a, b)]
    return Sample(whole[0], runs[0]), Sample(whole[1], runs[1])


def same_requests(a: RecordTable, b: RecordTable) -> tuple[IntArray, IntArray] | None:
    """Rows of either, in the order A sent them, so that row i of one is the request of row i of the other."""
    if len(a) != len(b) or not (a.ok & (a.num_arrivals > 0)).all() or not (b.ok & (b.num_arrivals > 0)).all():
        return None
    place = {request_id: row for row, request_id in enumerate(b.request_id)}
    found = np.array([place.get(request_id, -1) for request_id in a.request_id], dtype=np.int64)
    if len(place) != len(b) or -1 in found:
        return None
    alike = (
        np.array_equal(a.planned_prompt_tokens, b.planned_prompt_tokens[found])
        and np.array_equal(a.planned_output_tokens, b.planned_output_tokens[found])
        and np.array_equal(a.num_output_tokens, b.num_output_tokens[found])
    )
    order = _in_order(a)
    return (order, found[order]) if alike else None


def _of_the_same(
    figure: Figure, a: RecordTable, b: RecordTable, rows_a: Sequence[IntArray], rows_b: Sequence[IntArray]
) -> bool:
    """Whether the other side has no value where one has none (TPOT of tokens that came at one time, say)."""
    formula = LATENCIES.get(figure.what)
    if formula is None:
        return True
    missing = [np.isnan(formula(t)[np.concatenate(rows)]) for t, rows in ((a, rows_a), (b, rows_b))]
    return np.array_equal(missing[0], missing[1])


def _in_order(table: RecordTable) -> IntArray:
    """Rows that have latencies, in the order they were sent, segment after segment."""
    order = np.lexsort((table.sent_s, table.segment)).astype(np.int64)
    chosen: IntArray = order[(table.ok & (table.num_arrivals > 0))[order]]
    return chosen


def _series(figure: Figure, table: RecordTable, rows: IntArray, *, open_loop: bool) -> Series:
    """Units are requests, in the order of `rows`; or slices of the steady window, of a throughput."""
    if figure.what in THROUGHPUTS:
        return _throughput(figure.what, table, open_loop=open_loop)
    if figure.what == "itl":
        return _itl(figure, table, rows)
    formula = LATENCIES[figure.what]
    assert formula is not None, "of ITL alone there is one per token"
    values = formula(table)[rows]
    values = values[~np.isnan(values)]
    if not len(values):
        return Known(None)
    if figure.percent is None:
        return Ratio(values, np.ones(len(values)), scale=1e3)
    return Percentile(values, figure.percent, scale=1e3)


def _itl(figure: Figure, table: RecordTable, rows: IntArray) -> Series:
    firsts = np.zeros(len(table), dtype=np.int64)
    firsts[rows] = table.counts[table.arrival_start[:-1][rows]]
    later = (table.num_output_tokens - firsts)[rows]
    if not later.sum():
        return Known(None)
    if figure.percent is None:
        decode_s = (table.last_arrival_s - table.first_arrival_s)[rows]
        return Ratio(decode_s, later.astype(np.float64), scale=1e3)
    # `itl_s` goes by rows of the table, a series by the order of `rows`
    timed = np.zeros(len(table), dtype=np.bool_)
    timed[rows] = True
    lengths = np.where(timed, table.num_output_tokens - firsts, 0)
    starts = np.cumsum(lengths) - lengths
    taken = np.repeat(starts[rows] - (np.cumsum(later) - later), later) + np.arange(int(later.sum()))
    return Percentile(latencies.itl_s(table, timed)[taken], figure.percent, later, scale=1e3)


def _throughput(what: str, table: RecordTable, *, open_loop: bool) -> Series:
    """Of the whole run. What may differ by chance is the steady window, by slices of time: ramp and drain
    stay as they are. Without a steady window only the figure is known."""
    ok, duration_s = table.ok, windows.duration_s(table)
    amounts = {
        "request_throughput": np.ones(len(table)),
        "input_throughput": table.prompt_tokens.astype(np.float64),
        "output_throughput": table.num_output_tokens.astype(np.float64),
        "total_token_throughput": (table.prompt_tokens + table.num_output_tokens).astype(np.float64),
    }[what]
    total = float(amounts[ok].sum())
    slices, seconds = [np.empty(0)], [np.empty(0)]
    for window in windows.steady_windows(table, open_loop=open_loop):
        rows = ok & (table.segment == window.segment)
        slices.append(windows.work_by_slice(table, rows, amounts[rows], window, NUM_SLICES))
        seconds.append(np.full(NUM_SLICES, window.duration_s / NUM_SLICES))
    done, taken_s = np.concatenate(slices), np.concatenate(seconds)
    value = total / duration_s if duration_s else None
    if value is None or ok.sum() < FEWEST_VALUES:
        return Known(value, f"too few requests to tell: {int(ok.sum()):,}")
    if not len(done):
        return Known(value, "no steady window: all of the run was ramp and drain")
    return Ratio(done, taken_s, fixed=(total - float(done.sum()), duration_s - float(taken_s.sum())))
