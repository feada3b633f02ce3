"""Which benchmarks are drawn, in which order, and how many devices each had.

Owns the choice by name and what `--num-devices` means. What there is to choose from, `of_runs.py` and
`of_aiperf.py` find.

Invariants: there is at least one benchmark, and no more than can be told apart; a number of devices is what
somebody said, never a guess.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from prefixlab.bench.report.pictures.benchmarks.benchmark import Benchmark
from prefixlab.bench.report.pictures.benchmarks.of_aiperf import benchmarks_of_aiperf
from prefixlab.bench.report.pictures.benchmarks.of_runs import benchmark_of_runs, runs_by_benchmark
from prefixlab.bench.report.pictures.style import LOOKS
from prefixlab.core.config import did_you_mean
from prefixlab.core.errors import ConfigError

MOST = len(LOOKS)
TOLD, RECORDED = "--num-devices", "as it was measured"


@dataclass(frozen=True)
class Chosen:
    """`left_out`: what lies there too and is not drawn, with the reason."""

    benchmarks: tuple[Benchmark, ...]
    left_out: tuple[str, ...]


def choose(path: Path, names: Sequence[str] = (), num_devices: Sequence[str] = ()) -> Chosen:
    """Those of `names`, in that order; all, if none is named.

    Args:
        num_devices: words, each `N` for all or `NAME=N` for one.

    Raises:
        ConfigError: there is nothing to draw, no such benchmark, or too many.
    """
    if not path.is_dir():
        raise ConfigError(f"{path}: there is no such folder")
    own, out = runs_by_benchmark(path)
    read, read_out = benchmarks_of_aiperf(path)
    foreign = {f"{of.name} (aiperf)" if of.name in own else of.name: of for of in read}
    left_out = [*out, *read_out]
    found = sorted([*own, *foreign], key=_with_numbers)
    if not found:
        reasons = "".join(f"\n  {sentence}" for sentence in left_out)
        raise ConfigError(
            f"{path}: there is nothing to plot; what is plotted are points of prefixlab bench sweep over "
            f"--max-concurrency, or NAME/cN/…/profile_export_aiperf.json of aiperf{reasons}"
        )
    for name in names:
        if name not in found:
            known = ", ".join(found)
            raise ConfigError(f"--benchmark-name {name}: there is {known}{did_you_mean(name, found)}")
    wanted = list(dict.fromkeys(names)) or found
    if len(wanted) > MOST:
        raise ConfigError(
            f"{len(wanted)} benchmarks are more than the {MOST} a picture can tell apart: choose with "
            f"--benchmark-name among {', '.join(found)}"
        )
    chosen = [
        replace(foreign[name], name=name) if name in foreign else benchmark_of_runs(name, own[name])
        for name in wanted
    ]
    if others := [name for name in found if name not in wanted]:
        left_out.append(f"not named by --benchmark-name: {', '.join(others)}")
    counts = _counts(num_devices, wanted)
    return Chosen(tuple(_with_devices(benchmark, counts) for benchmark in chosen), tuple(left_out))


def _with_numbers(name: str) -> list[tuple[int, str]]:
    """To sort by: 9 comes before 10."""
    return [(int(word), "") if word.isdecimal() else (0, word) for word in re.split(r"([0-9]+)", name)]


def _counts(words: Sequence[str], names: Sequence[str]) -> dict[str, int]:
    """Name → devices; of all of them under "" where one number was given."""
    counts: dict[str, int] = {}
    for word in words:
        name, _, number = word.rpartition("=")  # a name may hold one itself
        if not (number.isascii() and number.isdecimal() and int(number) > 0):
            raise ConfigError(f"--num-devices takes N or NAME=N, N a whole number above 0, not {word!r}")
        if name and name not in names:
            raise ConfigError(f"--num-devices {word}: {name!r} is none of {', '.join(names)}")
        if name in counts:
            raise ConfigError(f"--num-devices is given twice for {name or 'all'}")
        counts[name] = int(number)
    return counts


def _with_devices(benchmark: Benchmark, counts: Mapping[str, int]) -> Benchmark:
    told = counts.get(benchmark.name, counts.get(""))
    if told is not None:
        return replace(benchmark, num_devices=told, devices_from=TOLD)
    said = {point.num_devices for point in benchmark.points}
    number = said.pop() if len(said) == 1 else None
    return replace(benchmark, num_devices=number, devices_from="" if number is None else RECORDED)
