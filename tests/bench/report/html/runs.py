"""Runs to make reports of: small ones as verbs leave them, and a large one of made-up requests."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from prefixlab.bench.loadgen.health import ClientHealth
from prefixlab.bench.metrics.point import evaluate
from prefixlab.bench.records.record import Outcome
from prefixlab.bench.records.store import write_parquet
from prefixlab.bench.records.table import CODE, NUMBERS, TIMES, Labels, RecordTable
from prefixlab.bench.report.points.keys import result_keys
from tests.bench.points import a_point, settings_of
from tests.bench.saved.saved_runs import save_run, save_sweep, write

HOSTILE = (
    "</script><script>document.title='broken'</script><img src=x onerror=\"document.title='broken'\">&\u2028"
)


def a_run(path: Path, *, failed: int = 0, **summary: object) -> Path:
    point = a_point(failed=failed)
    keys = result_keys(point) | {"swept": None}
    return save_run(path, records=point.table.to_records(), **(keys | summary))


def a_sweep(path: Path, concurrencies: tuple[int, ...] = (1, 2, 4, 8)) -> Path:
    points = {}
    for number, concurrency in enumerate(concurrencies):
        point = a_point(concurrency=concurrency)
        swept = {"max-concurrency": concurrency}
        points[f"{number:03}-max-concurrency={concurrency}"] = {
            "records": point.table.to_records(),
            **(result_keys(point) | {"swept": swept, "measured_hit_rate": 0.1 * number}),
        }
    return save_sweep(path, points)


def an_ab(path: Path) -> Path:
    """Two arms, and a difference that is not decided."""
    arms = {name: {**result_keys(a_point()), "swept": {"arm": name}} for name in ("fast", "slow")}
    save_sweep(path, arms, verb="bench ab")
    difference = {
        "about": "",
        "from": "slow",
        "to": "fast",
        "figure": "median_ttft_ms",
        "a": 100.0,
        "b": 90.0,
        "change": -0.1,
        "low": None,
        "high": None,
        "level": 0.95,
        "method": "too few to tell: 4",
        "num_values": [4, 4],
        "finding": "undecided",
    }
    told = {
        "finished": True,
        "verdicts": ["fast against slow: median TTFT -10.0 ms"],
        "differences": [difference],
        "arms": [{"name": "slow"}, {"name": "fast"}],
        "notes": [],
    }
    write(path / "summary.json", told)
    return path


def a_search(path: Path) -> Path:
    """For saturation: the run it began with, and two probes."""
    keys = result_keys(a_point())
    probes = {f"00{number}-request-rate={rate}": rate for number, rate in ((1, 40), (2, 50))}
    points = {name: {**keys, "swept": {"request-rate": rate}} for name, rate in probes.items()}
    save_sweep(path, {"000-capacity": {**keys, "swept": None}, **points}, verb="bench saturate")
    told = {
        "finished": True,
        "unit": "req/s",
        "objectives": "ttft:200",
        "share": 0.95,
        "confidence": 0.95,
        "load": 45.3,
        "low": 33.7,
        "high": 47.3,
        "answer": "holds 45.3 req/s",
        "probes": [
            {"load": 50.0, "share": 0.1, "probability": 0.01, "verdict": "misses"},
            {"load": 40.0, "share": 1.0, "probability": 0.99, "verdict": "meets"},
        ],
    }
    write(path / "summary.json", told)
    return path


def many_requests(num_requests: int, *, num_slots: int = 256, num_tokens: int = 32) -> RecordTable:
    """A closed loop that goes on long: TTFT of 50 ms and some, gaps of 10 ms on average."""
    rng = np.random.default_rng(0)
    num_rounds = -(-num_requests // num_slots)
    ttft_s = 0.05 + rng.exponential(0.02, (num_rounds, num_slots))
    gaps_s = rng.exponential(0.01, (num_rounds, num_slots, num_tokens - 1))
    busy_s = ttft_s + gaps_s.sum(axis=2)
    sent_s = np.cumsum(busy_s, axis=0) - busy_s
    arrivals_s = np.concatenate([np.zeros((num_rounds, num_slots, 1)), gaps_s], axis=2).cumsum(axis=2)
    arrivals_s += (sent_s + ttft_s)[:, :, None]
    sent_s = sent_s.reshape(-1)[:num_requests]
    arrivals_s = arrivals_s.reshape(-1, num_tokens)[:num_requests]
    nothing = np.full(num_requests, np.nan)
    times = dict.fromkeys(TIMES, nothing) | {
        "intended_s": sent_s,
        "sent_s": sent_s,
        "first_byte_s": arrivals_s[:, 0],
        "first_content_s": arrivals_s[:, 0],
        "last_s": arrivals_s[:, -1],
    }
    counts = dict.fromkeys(NUMBERS, np.zeros(num_requests, np.int64)) | {
        "planned_prompt_tokens": np.full(num_requests, 512),
        "num_prompt_tokens": np.full(num_requests, 512),
        "planned_output_tokens": np.full(num_requests, num_tokens),
        "num_cached_tokens": np.full(num_requests, 256),
        "num_expected_cached_tokens": np.full(num_requests, 256),
    }
    no_label = Labels(np.full(num_requests, -1, np.int32), ())
    return RecordTable(
        request_id=[f"request-{number}" for number in range(num_requests)],
        outcome=np.full(num_requests, CODE[Outcome.OK], np.uint8),
        arrival_start=np.arange(num_requests + 1) * num_tokens,
        arrivals_s=arrivals_s.reshape(-1),
        counts=np.ones(num_requests * num_tokens, np.int32),
        counts_estimated=np.zeros(num_requests, np.bool_),
        kernel_stamps=np.ones(num_requests, np.bool_),
        finish_reason=no_label,
        failure=no_label,
        session_id=no_label,
        worker=no_label,
        errors={},
        **times,
        **counts,
    )


def a_large_run(path: Path, num_requests: int) -> Path:
    (path / "segments").mkdir(parents=True)
    table = many_requests(num_requests)
    point = evaluate(settings_of(concurrency=256), [table], ClientHealth(stamps="kernel"))
    write(path / "config.json", {"verb": "bench serve", "command": "prefixlab bench serve"})
    write(path / "environment.json", {"backend": "openai", "url": "http://h:1", "server": {}})
    write(path / "summary.json", result_keys(point) | {"finished": True, "swept": None})
    write_parquet(path / "requests.parquet", table)
    return path
