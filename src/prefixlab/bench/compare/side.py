"""A side of a comparison: the runs behind a path, put together by what a sweep set at each of its points.

Owns recognising a result by its content, and which runs are repeats of each other: those of one side that a
sweep tells no apart. Formats are `importers/`'s.

Invariant: runs that asked different things are never taken for repeats.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from prefixlab.bench.compare.importers.aiperf import SUMMARY as AIPERF
from prefixlab.bench.compare.importers.aiperf import is_aiperf, read_aiperf
from prefixlab.bench.compare.importers.guidellm import is_guidellm, read_guidellm
from prefixlab.bench.compare.importers.ours import lengths, read_ours
from prefixlab.bench.compare.importers.sglang import is_sglang, read_sglang
from prefixlab.bench.compare.importers.vllm import is_vllm, read_vllm
from prefixlab.bench.compare.importers.warm_cache import is_warm_cache, read_warm_cache
from prefixlab.bench.compare.run import Run
from prefixlab.bench.records.run_dir import SUMMARY as OURS
from prefixlab.bench.records.table import RecordTable
from prefixlab.bench.saved.saved_run import find_runs
from prefixlab.core.errors import ConfigError

STDIN = "-"
WHAT_IS_READ = (
    "a run directory of prefixlab, or the result JSON of prefixlab (lines of warm-cache too), "
    "vLLM (--save-result), SGLang (bench_serving), guidellm (benchmarks.json) "
    "or aiperf (profile_export_aiperf.json)"
)


@dataclass(frozen=True, eq=False)
class Point:
    """One setting of a side, and its repeats."""

    key: Mapping[str, Any]
    runs: tuple[Run, ...]

    @property
    def name(self) -> str:
        return " ".join(f"{name.lstrip('-')}={value}" for name, value in self.key.items())


@dataclass(frozen=True, eq=False)
class Side:
    """See the module. `name` is what was typed."""

    name: str
    points: tuple[Point, ...]


def open_side(text: str) -> Side:
    """What `text` names: a path, `-` for standard input, or several with commas between, as repeats.

    Raises:
        ConfigError: there is nothing there that can be read, or its runs are no repeats of each other.
    """
    several = "," in text and not Path(text).exists()
    paths = [word.strip() for word in text.split(",")] if several else [text]
    runs = [run for path in paths for run in read_runs(path)]
    return Side(text, _points(runs, text))


def read_runs(text: str) -> list[Run]:
    """All runs in one place, in its order."""
    if text == STDIN:
        return _of_bytes(sys.stdin.buffer.read(), "standard input")
    path = Path(text)
    if path.is_dir():
        if (path / AIPERF).is_file():
            return read_runs(str(path / AIPERF))
        return [run for saved in find_runs(path) for run in read_ours(saved)]
    if path.name == OURS and (path.parent / "config.json").is_file():
        return read_runs(str(path.parent))
    try:
        return _of_bytes(path.read_bytes(), text)
    except OSError as error:
        raise ConfigError(f"{text} cannot be read: {error.strerror}; give {WHAT_IS_READ}") from None


def _of_bytes(content: bytes, source: str) -> list[Run]:
    runs = [run for data in _objects(content, source) for run in _recognised(data, source)]
    if not runs:
        raise ConfigError(f"{source} is empty: give {WHAT_IS_READ}")
    return [run if run.table is None else _with_lengths(run, run.table) for run in runs]


def _with_lengths(run: Run, table: RecordTable) -> Run:
    """Lengths are no setting of these files: what was really sent stands in for them."""
    return replace(run, question={**run.question, **lengths(table)})


def _objects(content: bytes, source: str) -> list[dict[str, Any]]:
    """Of one JSON object, or of lines of them."""
    # Python's writers put Infinity and NaN where JSON has no word.
    content = content.replace(b": Infinity", b": null").replace(b": NaN", b": null")
    try:
        return [msgspec.json.decode(content, type=dict[str, Any])]
    except msgspec.DecodeError:
        pass
    found = []
    for number, line in enumerate(content.splitlines(), start=1):
        if line.strip():
            try:
                found.append(msgspec.json.decode(line, type=dict[str, Any]))
            except msgspec.DecodeError as error:
                raise ConfigError(f"{source}, line {number}: no JSON object ({error})") from None
    return found


def _recognised(data: Mapping[str, Any], source: str) -> list[Run]:
    try:
        if is_warm_cache(data):
            return [read_warm_cache(data, source)]
        if is_guidellm(data):
            return read_guidellm(data, source)
        if is_aiperf(data):
            return [read_aiperf(data, source)]
        if is_sglang(data):
            return [read_sglang(data, source)]
        if is_vllm(data):
            return [read_vllm(data, source)]
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        why = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{source} looks like a result, but cannot be read as one ({why})") from None
    raise ConfigError(f"{source} is no result that is known here: give {WHAT_IS_READ}")


def _points(runs: list[Run], name: str) -> tuple[Point, ...]:
    by_key: dict[str, list[Run]] = {}
    for run in runs:
        by_key.setdefault(key_text(run.key), []).append(run)
    for same in by_key.values():
        _check_repeats(same, name)
    return tuple(Point(same[0].key, tuple(same)) for same in by_key.values())


def key_text(key: Mapping[str, Any]) -> str:
    """Equal where the same was set."""
    return repr(sorted((name.lstrip("-"), str(value)) for name, value in key.items()))


def _check_repeats(runs: list[Run], name: str) -> None:
    first = runs[0]
    for run in runs[1:]:
        if differ := [what for what, _, _ in differences(first.question, run.question)]:
            raise ConfigError(
                f"{name} holds runs that are no repeats of each other: {first.source} and {run.source} "
                f"differ in {', '.join(differ)}; name one of them"
            )


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(setting, of A, of B) of those both tell and tell otherwise; averages may differ by 1 %."""
    return [
        (name, a[name], b[name])
        for name in a
        if name in b and a[name] is not None and b[name] is not None and not _alike(a[name], b[name])
    ]


def _alike(a: Any, b: Any) -> bool:
    numbers = isinstance(a, (int, float)) and isinstance(b, (int, float))
    if numbers and isinstance(a, float) and isinstance(b, float):
        return abs(a - b) <= 0.01 * max(abs(a), abs(b))
    return bool(a == b or str(a) == str(b))
