"""The JSON lines of SGLang's `bench_serving`: with --output-details request by request, else figures only.

Owns what its figures mean. It opens a connection for every request and counts that into TTFT and E2E, so
these are no figures of ours. TPOT is, for it falls out there. ITL is ours on /generate (gap ÷ tokens, once
for each); on other APIs only where each event brought one token. It keeps no start times, so a throughput
is the file's; its duration ends after a question to the server behind the last answer.

Invariant: requests are in the order they were sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefixlab.bench.compare.figures import THROUGHPUTS
from prefixlab.bench.compare.importers.requests import Asked, itl_definition, numbers_in, table_of
from prefixlab.bench.compare.run import EVENT_GAP, OURS, WITH_CONNECT, Definition, Run

NATIVE = ("sglang", "sglang-native", "sglang-embedding")
WALL = "amount / (first start to the answer of /server_info after all)"
LISTS = ("input_lens", "output_lens", "ttfts", "itls", "errors")


def is_sglang(data: Mapping[str, Any]) -> bool:
    return {"total_output_tokens_retokenized", "mean_e2e_latency_ms", "random_range_ratio"} <= data.keys()


def read_sglang(data: Mapping[str, Any], source: str) -> Run:
    """One line of such a file."""
    asked = _requests(data) if all(isinstance(data.get(name), list) for name in LISTS) else []
    per_token = data.get("backend") in NATIVE
    definitions = {
        "ttft": Definition(f"{OURS['ttft'].partition(',')[0]}, {WITH_CONNECT}", bool(asked)),
        "e2el": Definition(f"{OURS['e2el'].partition(',')[0]}, {WITH_CONNECT}", bool(asked)),
        "tpot": Definition(OURS["tpot"], bool(asked)),
        "itl": Definition(OURS["itl"] if per_token else EVENT_GAP, of_records=False),
        **{what: Definition(WALL, of_records=False) for what in THROUGHPUTS},
    }
    if asked and (found := itl_definition(asked)).of_records:
        definitions["itl"] = found
    known = numbers_in(data, [*THROUGHPUTS, *(key for key in data if key.endswith("_ms"))])
    known |= {key.replace("e2e_latency", "e2el"): value for key, value in known.items()}
    if isinstance(data.get("total_throughput"), (int, float)):
        known["total_token_throughput"] = float(data["total_throughput"])
    server = data.get("server_info") or {}
    failed = sum(not row.ok for row in asked) if asked else None
    return Run(
        source=source,
        client="sglang bench_serving",
        key={"request-rate": data.get("request_rate"), "max-concurrency": data.get("max_concurrency")},
        table=table_of(asked) if asked else None,
        known=known,
        definitions=definitions,
        question={
            "model": server.get("served_model_name") or server.get("model_path"),
            "dataset-name": data.get("dataset_name"),
            "random-input-len": data.get("random_input_len"),
            "random-output-len": data.get("random_output_len"),
            "request-rate": _rate(data.get("request_rate")),
            "max-concurrency": data.get("max_concurrency"),
        },
        circumstances={"api": data.get("backend"), "server": server.get("version"), "label": data.get("tag")},
        open_loop=_rate(data.get("request_rate")) not in ("inf", None),
        planned=len(asked) if asked else None,
        failed=failed,
    )


def _rate(value: Any) -> Any:
    """Python writes an infinite one as Infinity, which decodes to null or inf."""
    return "inf" if value in (None, float("inf")) else value


def _requests(data: Mapping[str, Any]) -> list[Asked]:
    """The place in the file stands for the time of sending, which it does not keep."""
    columns = [data[name] for name in LISTS]
    return [
        Asked(
            request_id=str(number),
            sent_s=float(number),
            ttft_s=float(ttft),
            e2e_s=float(ttft) + sum(gaps),
            prompt_tokens=int(prompt),
            output_tokens=int(output),
            gaps_s=gaps,
            ok=not error and bool(ttft),
            error=error or "",
        )
        for number, (prompt, output, ttft, gaps, error) in enumerate(zip(*columns, strict=True))
    ]
