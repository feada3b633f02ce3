"""What calibrating found, in words and columns for people. Pure: values in, text out."""

from __future__ import annotations

from collections.abc import Sequence

from prefixlab.bench.calibrate.compare import Comparison
from prefixlab.bench.calibrate.ladder import Judgement, Rung
from prefixlab.bench.calibrate.store import ITL_ERROR_LIMIT_S, Calibration, Errors
from prefixlab.core.histogram import Histogram

COLUMNS = (
    "streams",
    "tokens/s asked",
    "tokens/s",
    "ITL p99 error",
    "ITL bias",
    "TTFT p99 error",
    "merged",
    "server late p99",
    "",
)

METRONOME_IN_WORDS = (
    "The metronome is the server the client is held against: it writes tokens on a schedule, and logs when. "
    "Where it\nis late itself, the machine is too busy for more, and nothing is proven about the client."
)


def describe(comparison: Comparison, judgement: Judgement) -> str:
    """One run in full. Times in milliseconds."""
    health = comparison.health
    num_tokens = comparison.itl.count + comparison.ttft.count
    cpu = f"{health.cpu_s / num_tokens * 1e6:,.1f} µs of CPU a token" if num_tokens else "no token"
    lines = [
        f"requests          {comparison.num_compared:,} compared, {comparison.num_not_comparable:,} lost",
        f"delivered         {comparison.tokens_per_s:,.0f} tokens/s, {comparison.streams:,} streams at once",
        f"TTFT              true p50 {_ms(comparison.true_ttft_s[0])}, p99 {_ms(comparison.true_ttft_s[1])}",
        f"  client's error  {_errors(comparison.ttft)}",
        f"ITL               true p50 {_ms(comparison.true_itl_s[0])}, p99 {_ms(comparison.true_itl_s[1])}",
        f"  client's error  {_errors(comparison.itl)}",
        f"merged            {comparison.merged_share:.3%} of the tokens share the stamp of the one before",
        f"client            {health.num_workers} process{'es' * (health.num_workers != 1)}, "
        f"{health.stamps} stamps, {cpu}",
        f"  looked late     {_lag(health.read_lag_s)}",
        f"  sent late       {_lag(health.send_lag_s)}",
        f"server            late by {_ms(comparison.late_p99_s)} at p99 of its own schedule",
        f"judgement         {judgement.value} ({_ms(ITL_ERROR_LIMIT_S)} of ITL at p99)",
    ]
    if judgement is Judgement.METRONOME:
        lines.append(METRONOME_IN_WORDS)
    return "\n".join(lines)


def ladder_table(rungs: Sequence[Rung]) -> str:
    """One line per rung, numbers to the right."""
    rows = [COLUMNS, *(_row(rung) for rung in rungs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column < len(COLUMNS) - 1 else cell
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def ceiling(calibration: Calibration | None, rungs: Sequence[Rung]) -> str:
    """The result, in one sentence."""
    if calibration is None:
        if rungs[-1].judgement is Judgement.METRONOME:
            return "ceiling: unknown: the metronome could not keep its schedule: is this machine busy?"
        return f"ceiling: none: the client errs by more than {_ms(ITL_ERROR_LIMIT_S)} wherever it was tried"
    at_least = "at least " if calibration.at_least else ""
    workers = f"{calibration.num_workers} client process{'es' * (calibration.num_workers != 1)}"
    return (
        f"ceiling: {at_least}{calibration.tokens_per_s:,.0f} tokens/s, and {calibration.streams:,} streams, "
        f"with {workers}: p99 ITL within {_ms(ITL_ERROR_LIMIT_S)} of what was so"
    )


def _row(rung: Rung) -> tuple[str, ...]:
    comparison = rung.comparison
    return (
        f"{rung.streams:,}",
        f"{rung.nominal_tokens_per_s:,.0f}",
        f"{comparison.tokens_per_s:,.0f}",
        _ms(comparison.itl.p99_s),
        _ms(comparison.itl.bias_s),
        _ms(comparison.ttft.p99_s),
        f"{comparison.merged_share:.2%}",
        _ms(comparison.late_p99_s),
        rung.judgement.value,
    )


def _errors(errors: Errors) -> str:
    p50, p99, largest = _ms(errors.p50_s), _ms(errors.p99_s), _ms(errors.max_s)
    return f"bias {_ms(errors.bias_s)}, p50 {p50}, p99 {p99}, max {largest}"


def _lag(lag_s: Histogram) -> str:
    if not lag_s.count:
        return "n/a"
    return f"p50 {_ms(lag_s.quantile(0.5))}, p99 {_ms(lag_s.quantile(0.99))}, max {_ms(lag_s.maximum)}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.3f} ms"
