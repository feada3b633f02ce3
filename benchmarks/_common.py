"""What every benchmark here prints and writes: machine, commit, command, and numbers with their spread.

Invariant: no number leaves a benchmark without its repeats, its spread and what it was measured on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Summary:
    """Repeated measurements of one thing. The unit is the caller's, and in the name it is stored under."""

    median: float
    p10: float
    p90: float
    repeats: int

    def __str__(self) -> str:
        return f"{self.median:,.4g} ({self.p10:,.4g} … {self.p90:,.4g}, n={self.repeats})"


def summary(samples: Sequence[float] | np.ndarray) -> Summary:
    p10, median, p90 = np.percentile(np.asarray(samples, dtype=np.float64), [10, 50, 90]).tolist()
    return Summary(rounded(median), rounded(p10), rounded(p90), repeats=len(samples))


def rounded(value: float) -> float:
    """To five significant digits: no benchmark here knows more."""
    return float(f"{value:.5g}")


def parser(description: str | None) -> argparse.ArgumentParser:
    """An argument parser with what all benchmarks share."""
    result = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--json", type=Path, metavar="FILE", help="write the results here as JSON")
    return result


def card(*sources: str) -> dict[str, Any]:
    """What was measured, on what. `sources`: the paths (from the repository's root) whose code is measured;
    uncommitted changes in them are admitted in the commit's name."""
    packages = {}
    for name in ("numpy", "torch"):
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "command": shlex.join(["python", *sys.argv]),
        "commit": _commit(sources or ("src", "benchmarks")),
        "cpu": _cpu_name(),
        "num_cpus": os.cpu_count(),
        "load_average_1min": round(os.getloadavg()[0], 1),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        **packages,
    }


def print_card(facts: dict[str, Any]) -> None:
    for key, value in facts.items():
        print(f"{key:>17}  {value}")
    print()


def print_table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns aligned; the first to the left, numbers to the right."""
    cells = [list(headers), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]
    for row in cells:
        first, *others = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join([first, *others]).rstrip())
    print()


def write_json(path: Path | None, document: dict[str, Any]) -> None:
    """Write `document` if a path was given; Summaries become objects."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=1, allow_nan=False, default=asdict) + "\n")
        print(f"wrote {path}", file=sys.stderr)


def _commit(sources: Sequence[str]) -> str:
    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    commit = git("rev-parse", "--short=12", "HEAD") or "unknown"
    return commit + (" + changes" if git("status", "--porcelain", "--", *sources) else "")


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"
