"""The result of `vllm bench serve --save-result`, and of `prefixlab bench serve --save-result`, whose keys
are the same: with --save-detailed request by request, else figures only.

Owns what vLLM's figures mean. Its TTFT ends with the first event that has choices: on a completions API
that is the first token, on chat it may be an event of a role alone. Its ITL is the gap between events, ours
only where each brought one token.

Invariant: figures come from the lists of the file where it has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefixlab.bench.compare.figures import LATENCIES, THROUGHPUTS
from prefixlab.bench.compare.importers.requests import Asked, itl_definition, numbers_in, table_of
from prefixlab.bench.compare.run import EVENT_GAP, FIRST_EVENT, OURS, Definition, Run, ours

CHAT = ("openai-chat", "vllm-chat", "openai-audio")
LISTS = ("ttfts", "itls", "output_lens", "input_lens", "start_times", "errors")


def is_vllm(data: Mapping[str, Any]) -> bool:
    return {"endpoint_type", "completed", "output_throughput"} <= data.keys()


def read_vllm(data: Mapping[str, Any], source: str) -> Run:
    """One object of such a file."""
    by_us = "prefixlab_version" in data
    asked = _requests(data, by_us=by_us) if all(isinstance(data.get(name), list) for name in LISTS) else []
    definitions: dict[str, Definition]
    if asked:
        definitions = ours("ttft", "tpot", "e2el", *THROUGHPUTS) | {"itl": itl_definition(asked)}
    else:
        texts = {**OURS, **({} if by_us else {"itl": EVENT_GAP})}
        definitions = {what: Definition(text, of_records=False) for what, text in texts.items()}
    if by_us and not definitions["itl"].of_records:
        definitions["itl"] = Definition(OURS["itl"], of_records=False)
    if not by_us and str(data["endpoint_type"]) in CHAT:
        definitions["ttft"] = Definition(FIRST_EVENT, definitions["ttft"].of_records)
        per_token = "(last token - first event) / (output tokens - 1), per request"
        definitions["tpot"] = Definition(per_token, definitions["tpot"].of_records)
    rate = data.get("request_rate")
    failed, completed = data.get("failed"), int(data["completed"])
    return Run(
        source=source,
        client=f"prefixlab {data['prefixlab_version']}" if by_us else "vllm bench serve",
        key=data.get("swept") or {"request-rate": rate, "max-concurrency": data.get("max_concurrency")},
        table=table_of(asked) if asked else None,
        known=numbers_in(data, [*THROUGHPUTS, *(key for key in data if key.endswith("_ms"))]),
        definitions={what: of for what, of in definitions.items() if what in (*LATENCIES, *THROUGHPUTS)},
        question={
            "model": data.get("model_id"),
            "num-prompts": data.get("num_prompts"),
            "request-rate": rate,
            "burstiness": data.get("burstiness"),
            "max-concurrency": data.get("max_concurrency"),
        },
        circumstances={"api": data["endpoint_type"], "date": data.get("date"), "label": data.get("label")},
        open_loop=rate not in ("inf", None),
        planned=completed + (int(failed) if failed is not None else 0),
        failed=failed,
    )


def _requests(data: Mapping[str, Any], *, by_us: bool) -> list[Asked]:
    rows = []
    columns = [data[name] for name in LISTS]
    ids = data.get("request_ids") or [str(number) for number in range(len(columns[0]))]
    for request_id, ttft, gaps, output, prompt, start, error in zip(ids, *columns, strict=True):
        ok = not error and ttft is not None and start is not None
        ttft_s = float(ttft or 0.0)
        rows.append(
            Asked(
                request_id=request_id,
                sent_s=float(start or 0.0),
                ttft_s=ttft_s,
                e2e_s=ttft_s + sum(gaps),
                prompt_tokens=int(prompt),
                output_tokens=int(output),
                gaps_s=gaps,
                ok=ok,
                error=error or "",
            )
        )
    return rows
