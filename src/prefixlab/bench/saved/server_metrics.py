"""What servers said of themselves during a run, read back: the metrics that figures are made of.

Owns the names of vLLM's, SGLang's and our metrics behind one figure, where the files are, and how samples
become means and growth over steps of time.

Invariant: between two beats a gauge holds, and a counter grew evenly; one that fell began anew, and counts
from 0. Before the first beat and after the last nothing is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import duckdb
import msgspec
import numpy as np
import numpy.typing as npt

from prefixlab.bench.records.run_dir import SEGMENTS
from prefixlab.bench.witness.samples import METRICS, UP, quoted
from prefixlab.core.errors import ConfigError

FloatArray = npt.NDArray[np.float64]

RUNNING = ("prefixlab:running_requests", "vllm:num_requests_running", "sglang:num_running_reqs")
QUEUED = ("prefixlab:waiting_requests", "vllm:num_requests_waiting", "sglang:num_queue_reqs")
PAGES = "prefixlab:pages"
USAGE = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc", "sglang:token_usage")
HITS = (
    "prefixlab:cached_tokens_total",
    "vllm:prefix_cache_hits_total",
    "vllm:gpu_prefix_cache_hits_total",
    "sglang:cached_tokens_total",
)
ASKED = (
    "prefixlab:prompt_tokens_total",
    "vllm:prefix_cache_queries_total",
    "vllm:gpu_prefix_cache_queries_total",
    "sglang:prompt_tokens_total",
)
GENERATED = (
    "prefixlab:generation_tokens_total",
    "vllm:generation_tokens_total",
    "sglang:generation_tokens_total",
)
EVICTED = ("prefixlab:evicted_pages_total", "sglang:evicted_tokens_total")
PREEMPTED = ("prefixlab:retractions_total", "vllm:num_preemptions_total")
"""Names of one figure, those of the newest versions first: the first that a server tells counts."""
HELD = ("protected", "in_use")
"""States of our pages that running requests hold; `evictable` ones are cached, and there for the taking."""
_ALL = (*RUNNING, *QUEUED, PAGES, *USAGE, *HITS, *ASKED, *GENERATED, *EVICTED, *PREEMPTED, UP)


def metrics_files(run: Path) -> list[Path]:
    """Of a run; of one that is not finished, those of its stretches; none where no metrics were kept."""
    whole = run / METRICS
    return [whole] if whole.is_file() else sorted((run / SEGMENTS).glob(f"[0-9]*/{METRICS}"))


def metrics_source(files: Iterable[Path]) -> str | None:
    """What to select the rows of such files from, of any number of runs, in DuckDB's words: `run` and
    `segment` before their own columns. None without files."""
    whole: list[Path] = []
    parts: list[Path] = []
    for path in files:
        (parts if path.parent.parent.name == SEGMENTS else whole).append(path)
    picked = []
    if whole:
        picked.append(
            f"SELECT left(filename, length(filename) - {len(METRICS) + 1}) AS run, * EXCLUDE (filename)"
            f" FROM {parquet_files(whole)}"
        )
    if parts:
        place = f"'^(.*)/{SEGMENTS}/([0-9]+)/{METRICS}$'"
        picked.append(
            f"SELECT regexp_extract(filename, {place}, 1) AS run,"
            f" regexp_extract(filename, {place}, 2)::BIGINT AS segment, * EXCLUDE (filename)"
            f" FROM {parquet_files(parts)}"
        )
    return f"({' UNION ALL BY NAME '.join(picked)})" if picked else None


def parquet_files(paths: Iterable[Path]) -> str:
    """Of several, which need not have the same columns; `filename` says which."""
    return f"read_parquet([{', '.join(map(quoted, paths))}], filename = true, union_by_name = true)"


@dataclass(frozen=True)
class Heard:
    """One server in one stretch, at the beats it answered.

    Attributes:
        beats_s: shape (b,), ascending.
        series: name → labels and values, shape (b,), NaN before the series was there.
    """

    beats_s: FloatArray
    series: Mapping[str, Sequence[tuple[str, FloatArray]]]

    def first_of(self, names: Sequence[str]) -> Sequence[tuple[str, FloatArray]]:
        """Of the first name that is there."""
        return next((self.series[name] for name in names if name in self.series), ())

    def gauge(self, names: Sequence[str], edges: FloatArray) -> FloatArray | None:
        """Sum over labels, mean over each step. None where it is not told."""
        series = [values for _, values in self.first_of(names)]
        return self.mean(np.nansum(series, axis=0), edges) if series else None

    def mean(self, values: FloatArray, edges: FloatArray) -> FloatArray:
        """Over the part of each step that was looked at, values holding from beat to beat."""
        area = np.concatenate([[0.0], np.cumsum(values[:-1] * np.diff(self.beats_s))])
        seen_s = np.clip(edges, self.beats_s[0], self.beats_s[-1])
        with np.errstate(invalid="ignore"):
            means: FloatArray = np.diff(np.interp(seen_s, self.beats_s, area)) / np.diff(seen_s)
        return means

    def grown(self, names: Sequence[str], edges: FloatArray) -> FloatArray | None:
        """By how much a counter grew in each step, over all labels."""
        series = [values for _, values in self.first_of(names)]
        if not series:
            return None
        values = np.nan_to_num(np.array(series))  # of labels that come later it was 0 until then
        steps = np.diff(values, axis=1)
        steps = np.where(steps < 0, values[:, 1:], steps)
        total = np.concatenate([[0.0], np.cumsum(steps.sum(axis=0))])
        seen_s = np.clip(edges, self.beats_s[0], self.beats_s[-1])
        return np.where(np.diff(seen_s) > 0, np.diff(np.interp(seen_s, self.beats_s, total)), np.nan)

    def usage(self, edges: FloatArray) -> FloatArray | None:
        if pages := self.series.get(PAGES):
            by_state = {
                msgspec.json.decode(labels)["state"]: np.nan_to_num(values) for labels, values in pages
            }
            held = sum((by_state[state] for state in HELD if state in by_state), np.zeros(len(self.beats_s)))
            return self.mean(held / np.maximum(1.0, np.sum(list(by_state.values()), axis=0)), edges)
        series = [values for _, values in self.first_of(USAGE)]
        return self.mean(np.nan_to_num(np.mean(series, axis=0)), edges) if series else None


def read_heard(run: Path) -> dict[int, list[Heard]]:
    """By stretches. Series that no figure is made of are not read."""
    source = metrics_source(metrics_files(run))
    if source is None:
        return {}
    with duckdb.connect() as database:
        try:
            rows = database.execute(
                f"SELECT segment, server, name, labels, time_s, value FROM {source} WHERE name IN"
                f" ({', '.join('?' * len(_ALL))}) AND (name != ? OR value > 0)"
                " ORDER BY segment, server, name, labels, time_s",
                [*_ALL, UP],
            ).fetchnumpy()
        except duckdb.Error as error:
            raise ConfigError(f"{run}: its {METRICS} cannot be read: {str(error).splitlines()[0]}") from None
    found: dict[int, list[Heard]] = {}
    for (segment, _), series in _by_server(rows):
        beats_s = series[UP][0][1] if UP in series else np.empty(0)
        if len(beats_s) > 1:
            filled = {
                name: [(labels, _at(beats_s, times_s, values)) for labels, times_s, values in told]
                for name, told in series.items()
                if name != UP
            }
            # Nothing was asked before time 0: what grew around it grew behind it.
            found.setdefault(segment, []).append(Heard(np.maximum(0.0, beats_s), filled))
    return found


_Told = dict[str, list[tuple[str, FloatArray, FloatArray]]]


def _by_server(rows: Mapping[str, npt.NDArray[np.generic]]) -> Iterator[tuple[tuple[int, str], _Told]]:
    """(segment, server) → name → labels, times, values."""
    keys = list(zip(*(rows[name].tolist() for name in ("segment", "server", "name", "labels")), strict=True))
    times_s, values = rows["time_s"].astype(np.float64), rows["value"].astype(np.float64)
    cuts = [0, *(row for row in range(1, len(keys)) if keys[row] != keys[row - 1]), len(keys)]
    servers: dict[tuple[int, str], _Told] = {}
    for low, high in pairwise(cuts) if keys else ():
        segment, server, name, labels = keys[low]
        told = servers.setdefault((segment, server), {})
        told.setdefault(name, []).append((labels, times_s[low:high], values[low:high]))
    yield from servers.items()


def _at(beats_s: FloatArray, times_s: FloatArray, values: FloatArray) -> FloatArray:
    """The value that holds at each beat; NaN before the first."""
    place = np.searchsorted(times_s, beats_s, side="right") - 1
    return np.where(place >= 0, values[np.maximum(0, place)], np.nan)
