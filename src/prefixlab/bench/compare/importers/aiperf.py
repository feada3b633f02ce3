"""aiperf's `profile_export_aiperf.json`, and `profile_export.jsonl` beside it, request by request.

Owns what its figures mean. Its "inter-token latency" is (E2E - TTFT) ÷ (tokens - 1) per request, our TPOT;
its "inter-chunk latency" is the gap between events, our ITL only where each brought one token. Unless it
was told to use the server's counts it makes tokens of the text again: what is made of tokens is then no
figure of ours.

Invariant: only requests of its profiling phase are counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from prefixlab.bench.compare.figures import THROUGHPUTS
from prefixlab.bench.compare.importers.requests import Asked, itl_definition, table_of
from prefixlab.bench.compare.run import EVENT_GAP, OURS, Definition, Run
from prefixlab.core.errors import ConfigError

SUMMARY, RECORDS = "profile_export_aiperf.json", "profile_export.jsonl"
RETOKENISED = ", tokens made of the text again"
_LATENCIES = {
    "time_to_first_token": "ttft",
    "inter_token_latency": "tpot",
    "inter_chunk_latency": "itl",
    "request_latency": "e2el",
}
_RATES = {
    "request_throughput": "request_throughput",
    "output_token_throughput": "output_throughput",
    "input_token_throughput": "input_throughput",
    "total_token_throughput": "total_token_throughput",
}


def is_aiperf(data: Mapping[str, Any]) -> bool:
    return "aiperf_version" in data and "request_latency" in data


def read_aiperf(data: Mapping[str, Any], source: str) -> Run:
    """The summary, with the records beside it if `source` is a file."""
    records = Path(source).with_name(RECORDS)
    asked = list(_requests(records)) if records.is_file() else []
    config = data.get("input_config") or {}
    endpoint = config.get("endpoint") or {}
    phases: list[Mapping[str, Any]] = config.get("phases") or []
    phase = next((phase for phase in phases if phase.get("kind") == "profiling"), {})
    counted = bool(endpoint.get("use_server_token_count"))
    suffix = "" if counted else RETOKENISED
    of_tokens = ("tpot", "output_throughput", "input_throughput", "total_token_throughput")
    definitions = {
        what: Definition(OURS[what] + (suffix if what in of_tokens else ""), bool(asked))
        for what in ("ttft", "tpot", "e2el", *THROUGHPUTS)
    }
    definitions["itl"] = itl_definition(asked) if asked else Definition(EVENT_GAP, of_records=False)
    rate, concurrency = phase.get("rate") or phase.get("request_rate"), phase.get("concurrency")
    failed = int((data.get("error_request_count") or {}).get("avg") or 0)
    done = int((data.get("request_count") or {}).get("avg") or 0)
    return Run(
        source=source,
        client=f"aiperf {data['aiperf_version']}",
        key={"request-rate": rate, "max-concurrency": concurrency},
        table=table_of(asked) if asked else None,
        known=_figures(data),
        definitions=definitions,
        question={
            "model": next(iter(_names(config)), None),
            "num-prompts": phase.get("requests"),
            "request-rate": rate if rate is not None else "inf",
            "max-concurrency": concurrency,
        },
        circumstances={"api": endpoint.get("type"), "url": next(iter(endpoint.get("urls") or []), None)},
        open_loop=rate is not None,
        planned=done + failed,
        failed=failed,
    )


def _names(config: Mapping[str, Any]) -> list[str]:
    return [str(item["name"]) for item in (config.get("models") or {}).get("items") or []]


def _figures(data: Mapping[str, Any]) -> dict[str, float]:
    known = {}
    for theirs, what in _LATENCIES.items():
        for name, value in (data.get(theirs) or {}).items():
            statistic = {"avg": "mean", "p50": "median"}.get(name, name)
            if isinstance(value, (int, float)):
                known[f"{statistic}_{what}_ms"] = float(value)
    for theirs, what in _RATES.items():
        if isinstance(value := (data.get(theirs) or {}).get("avg"), (int, float)):
            known[what] = float(value)
    return known


def _requests(path: Path) -> Iterator[Asked]:
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            row = msgspec.json.decode(line, type=dict[str, Any])
            about = row["metadata"]
            if about["benchmark_phase"] == "profiling":
                yield _request(row, about)
        except (msgspec.DecodeError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}, line {number}: no record of aiperf's ({error})") from None


def _request(row: Mapping[str, Any], about: Mapping[str, Any]) -> Asked:
    values = {name: of["value"] for name, of in row["metrics"].items()}
    error = row.get("error")
    ok = not error and not about["was_cancelled"] and "time_to_first_token" in values
    took_ms = (about["request_end_ns"] - about["request_start_ns"]) / 1e6
    return Asked(
        request_id=str(about["session_num"]),
        sent_s=about["request_start_ns"] / 1e9,
        ttft_s=values.get("time_to_first_token", 0.0) / 1e3,
        e2e_s=values.get("request_latency", took_ms) / 1e3,
        prompt_tokens=int(values.get("input_sequence_length", 0)),
        output_tokens=int(values.get("output_sequence_length", 0)),
        gaps_s=[gap / 1e3 for gap in values["inter_chunk_latency"]]
        if "inter_chunk_latency" in values
        else None,
        ok=ok,
        error=str(error or "cancelled, or no token"),
    )
