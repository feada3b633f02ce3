"""guidellm's `benchmarks.json`: one run per benchmark in it, request by request.

Owns what its figures mean. Its "inter-token latency" is (last - first) ÷ (tokens - 1), a mean per request:
our TPOT. Its "time per output token" includes TTFT, and is nothing of ours; gaps between tokens it does not
keep.

Invariant: only requests inside its measured window are counted, as it does itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prefixlab.bench.compare.figures import THROUGHPUTS
from prefixlab.bench.compare.importers.requests import Asked, table_of
from prefixlab.bench.compare.run import OURS, Definition, Run, ours


def is_guidellm(data: Mapping[str, Any]) -> bool:
    about = data.get("metadata")
    return isinstance(about, dict) and "guidellm_version" in about and "benchmarks" in data


def read_guidellm(data: Mapping[str, Any], source: str) -> list[Run]:
    """Every benchmark of the file."""
    client = f"guidellm {data['metadata']['guidellm_version']}"
    return [_run(benchmark, client, source) for benchmark in data["benchmarks"]]


def _run(benchmark: Mapping[str, Any], client: str, source: str) -> Run:
    config, requests = benchmark["config"], benchmark["requests"]
    strategy, backend = config["strategy"], config["backend"]
    asked = list(_requests(requests.get("successful") or [], ok=True))
    failed = list(_requests(requests.get("errored") or [], ok=False))
    definitions: dict[str, Definition] = ours("ttft", "tpot", "e2el", *THROUGHPUTS)
    metrics, known = benchmark["metrics"], dict[str, float]()
    if not asked:  # requests are left out of the file: its own figures, where they are ours
        definitions = {what: Definition(OURS[what], of_records=False) for what in ("ttft", "tpot", "e2el")}
        for name, what, scale in _LATENCIES:
            known |= _figures(metrics[name]["successful"], what, scale)
    whole = not (benchmark.get("warmup_duration") or benchmark.get("cooldown_duration"))
    if not whole:
        definitions = {what: of for what, of in definitions.items() if what not in THROUGHPUTS}
    rate = strategy.get("rate")
    streams = strategy.get("streams") or strategy.get("max_concurrency")
    return Run(
        source=source,
        client=client,
        key={"strategy": strategy["type_"], "request-rate": rate, "max-concurrency": streams},
        table=table_of([*asked, *failed]) if asked else None,
        known=known,
        definitions=definitions,
        question={
            "model": backend.get("model"),
            "request-rate": rate if rate is not None else "inf",
            "max-concurrency": streams,
        },
        circumstances={"api": backend.get("request_format"), "url": backend.get("target")},
        open_loop=strategy["type_"] in ("constant", "poisson", "async"),
        planned=int(metrics["request_totals"]["total"]),
        failed=int(metrics["request_totals"]["errored"]),
        notes=() if whole else ("guidellm left out warm-up or cool-down: its throughput is of a part",),
    )


_LATENCIES = (
    ("time_to_first_token_ms", "ttft", 1.0),
    ("inter_token_latency_ms", "tpot", 1.0),
    ("request_latency", "e2el", 1e3),
)


def _figures(summary: Mapping[str, Any], what: str, scale: float) -> dict[str, float]:
    found = {"mean": summary["mean"], "median": summary["median"]} | summary["percentiles"]
    return {f"{name}_{what}_ms": scale * float(value) for name, value in found.items() if value is not None}


def _requests(rows: list[Mapping[str, Any]], *, ok: bool) -> Iterator[Asked]:
    for number, row in enumerate(sorted(rows, key=lambda row: float(row["request_start_time"] or 0.0))):
        start_s, times = float(row["request_start_time"] or 0.0), row["info"]["timings"]
        first_s, last_s = times.get("first_token_iteration"), times.get("last_token_iteration")
        timed = ok and first_s is not None and last_s is not None
        yield Asked(
            request_id=str(number) if ok else f"failed-{number}",
            sent_s=start_s,
            ttft_s=first_s - start_s if timed else 0.0,
            e2e_s=last_s - start_s if timed else float(row.get("request_latency") or 0.0),
            prompt_tokens=int(row.get("prompt_tokens") or 0),
            output_tokens=int(row.get("output_tokens") or 0),
            ok=timed,
            error=str(row["info"].get("error") or "no token"),
        )
