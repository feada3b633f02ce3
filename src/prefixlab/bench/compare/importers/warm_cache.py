"""The lines of `prefixlab bench warm-cache --output-file`: a point each, measured once, figures only.

Owns which of their keys are the point and which the question. What its figures mean is `run.py`'s: they are
ours.

Invariant: a repeat is a line of its own; lines of other points, or of another size, are never repeats.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefixlab.bench.compare.figures import THROUGHPUTS
from prefixlab.bench.compare.importers.requests import numbers_in
from prefixlab.bench.compare.run import ALL, OURS, Definition, Run

_QUESTION = ("model", "total_tokens", "output_len", "num_prompts", "max_concurrency")
_CIRCUMSTANCES = ("backend", "server", "server_version", "page_size", "client_machine", "date", "seed")
_UNDONE = ("failed", "cancelled", "unsent")


def is_warm_cache(data: Mapping[str, Any]) -> bool:
    return {"prefixlab_version", "shared_prefix_pct", "output_throughput"} <= data.keys()


def read_warm_cache(data: Mapping[str, Any], source: str) -> Run:
    """One line."""
    return Run(
        source=source,
        client=f"prefixlab {data['prefixlab_version']}",
        key={"shared-prefix-pct": data["shared_prefix_pct"]},
        table=None,
        known=numbers_in(data, [*THROUGHPUTS, *(key for key in data if key.endswith("_ms"))]),
        definitions={what: Definition(OURS[what], of_records=False) for what in ALL},
        question={name.replace("_", "-"): data.get(name) for name in _QUESTION},
        circumstances={name.replace("_", " "): data.get(name) for name in _CIRCUMSTANCES}
        | {"cache": data.get("verdict")},
        open_loop=False,
        planned=int(data["completed"]) + sum(int(data.get(name) or 0) for name in _UNDONE),
        failed=int(data["failed"]),
    )
