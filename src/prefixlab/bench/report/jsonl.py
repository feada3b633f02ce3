"""Results as JSON lines, appended as they are made: what a later failure cannot take back.

Owns the keys of a line. Those of SGLang's bench_warm_cache are all there under their names; ours stand
beside.

Invariant: every line is valid JSON (no Infinity, no NaN: what is unlimited or was not measured is null).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from prefixlab import __version__
from prefixlab.bench.config.warm_cache import WarmCacheOptions
from prefixlab.bench.ledger.check import CacheCheck
from prefixlab.bench.ledger.ledger import Ledger
from prefixlab.bench.metrics.summary import Metrics, as_result_keys
from prefixlab.bench.report.environment import machine_name
from prefixlab.bench.report.points.keys import cache_keys, client_keys
from prefixlab.bench.runs.warm_cache import PointRun
from prefixlab.bench.targets.endpoint import Endpoint
from prefixlab.core.clock import wall_time_label
from prefixlab.core.errors import ConfigError


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Append one line and flush it. ConfigError if the file cannot be written."""
    line = msgspec.json.encode(row) + b"\n"
    try:
        with path.open("ab") as file:
            file.write(line)
    except OSError as error:
        raise ConfigError(f"--output-file {path} cannot be written: {error.strerror}") from None


def warm_cache_row(run: PointRun, options: WarmCacheOptions, endpoint: Endpoint) -> dict[str, Any]:
    """One point, measured once."""
    return {
        **_endpoint_keys(endpoint, "warm-cache"),
        "request_rate": None,
        "max_concurrency": options.max_concurrency,
        "shared_prefix_pct": run.shape.pct,
        "prefix_len": run.shape.prefix_len,
        "suffix_len": run.shape.suffix_len,
        "total_tokens": run.shape.total_tokens,
        "num_prompts": options.num_prompts,
        "output_len": options.output_len,
        "seed": options.seed,
        "repeat": run.repeat,
        "cold_start": run.cold_start.coldness.value,
        "cold_start_detail": run.cold_start.detail,
        "salt": run.salt or None,
        "warm_up_cached_tokens": run.warm_up_cached_tokens,
        **measured_keys(run.metrics, run.check, run.ledger),
        "ledger": None if run.ledger is None else run.ledger.keys(),
        "client": client_keys(run.health),
        "notes": list(run.notes),
    }


def measured_keys(metrics: Metrics, check: CacheCheck, ledger: Ledger | None = None) -> dict[str, Any]:
    """Metrics and the cache's ledger. Tokens are counted by the server, so none are retokenized."""
    return {
        **as_result_keys(metrics),
        "total_output_retokenized": None,
        **cache_keys(check, ledger),
    }


def _endpoint_keys(endpoint: Endpoint, dataset_name: str) -> dict[str, Any]:
    return {
        "backend": endpoint.backend,
        "dataset_name": dataset_name,
        "model": endpoint.model,
        "date": wall_time_label(),
        "prefixlab_version": __version__,
        "client_machine": machine_name(),
        "server": endpoint.facts.backend,
        "server_version": endpoint.facts.version,
        "page_size": endpoint.page_size,
        "expects_miss": endpoint.expects_miss,
        "vocabulary": endpoint.wording.vocabulary.describe(),
    }
