"""What a run leaves behind besides its records: names, the machine it ran on, the summary in every form.

Owns the contents of those files. The folder and its rules are `records/run_dir.py`'s; the figures and their
keys the metrics' and the reports'.

Invariant: `summary.json` says whether the run came to its end, and is written last.
"""

from __future__ import annotations

import dataclasses
import math
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from rich.console import Console

from prefixlab import __version__
from prefixlab.bench.config.report import NO_FOLDER, RUNS, ReportConfig
from prefixlab.bench.config.serve import ServeConfig
from prefixlab.bench.doctor.page import keep_page
from prefixlab.bench.metrics.point import PointResult
from prefixlab.bench.metrics.turns import has_turns
from prefixlab.bench.records.export import join_lines, write_lines
from prefixlab.bench.records.run_dir import ENVIRONMENT, SUMMARY, RunDir
from prefixlab.bench.records.store import write_csv, write_parquet
from prefixlab.bench.report.environment import machine_name
from prefixlab.bench.report.jsonl import append_line
from prefixlab.bench.report.points.keys import result_keys
from prefixlab.bench.report.points.side_by_side import notes_of_points, points_table
from prefixlab.bench.report.points.styles import show_point
from prefixlab.bench.report.turns import turns_csv
from prefixlab.bench.targets.endpoint import Endpoint
from prefixlab.bench.witness.samples import join_metrics
from prefixlab.core.clock import wall_time_label
from prefixlab.core.config import MASK
from prefixlab.core.errors import ConfigError, TargetError

REPORT_WIDTH = 120
SECRET_FLAGS = frozenset({"--api-key", "--admin-api-key", "--header"})


def run_name(config: ServeConfig, endpoint: Endpoint) -> str:
    """`{label}-{backend}-{rate|conc}-{model}-{time}`, in letters any file system takes."""
    load = config.load
    parts = [config.report.label, endpoint.backend]
    if load.has_times:
        parts.append(f"{load.request_rate:g}qps" if math.isfinite(load.request_rate) else "arrivals")
    if load.max_concurrency is not None:
        parts.append(f"concurrency{load.max_concurrency}")
    parts += [(endpoint.model or "model").rstrip("/").rpartition("/")[2], wall_time_label()]
    return "-".join(plain_word(part) for part in parts if part)


def default_folder(config: ServeConfig, endpoint: Endpoint) -> Path:
    return RUNS / run_name(config, endpoint)


def new_folder(chosen: str | None, default: Path, settings: Mapping[str, Any]) -> RunDir | None:
    """Where `--run-dir` says to keep a run, `default` or beside it where it says nothing; None where nothing
    is to be kept. ConfigError if it cannot be made."""
    if chosen == NO_FOLDER:
        return None
    return (
        RunDir.create_beside(default, settings) if chosen is None else RunDir.create(Path(chosen), settings)
    )


def plain_word(text: str) -> str:
    return re.sub(r"[^a-zA-Z0-9_.=-]+", "_", text)


def environment(endpoint: Endpoint, seed: int) -> dict[str, Any]:
    """Machine, versions, commit, and what the server says of itself."""
    return {
        "client_machine": machine_name(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "prefixlab": __version__,
        "git_commit": git_commit(),
        "started": wall_time_label(),
        "seed": seed,
        "url": endpoint.url,
        "backend": endpoint.backend,
        "model": endpoint.model,
        "page_size": endpoint.page_size,
        "vocabulary": endpoint.wording.vocabulary.describe(),
        "server": dataclasses.asdict(endpoint.facts),
    }


def resolved(endpoint: Endpoint) -> dict[str, Any]:
    """What settings left open, as found: for `config.json`. Going on with a run finds it out anew."""
    return {"backend": endpoint.backend, "base_url": endpoint.url, "model": endpoint.model}


def command_line(words: Sequence[str]) -> str:
    """As it was typed, but for secrets: the values of options that hold any."""
    shown = ["prefixlab"]
    hidden = False
    for word in words[1:]:
        if word.startswith("--"):
            flag, equals, _ = word.partition("=")
            hidden = flag in SECRET_FLAGS
            shown.append(f"{flag}={MASK}" if hidden and equals else word)
        else:
            shown.append(MASK if hidden else word)
    return shlex.join(shown)


def git_commit() -> str | None:
    """Of the code that runs, `+` behind it where files differ; None outside a checkout."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def begin(folder: RunDir, endpoint: Endpoint, seed: int) -> list[str]:
    """Before anything is sent. A resumed run keeps what it began with. Returns notes, for `finish`."""
    number = len(folder.segments())
    name = ENVIRONMENT if number == 0 else f"environment-{number}.json"
    folder.write_json(name, environment(endpoint, seed))
    return _server_metrics(folder, endpoint, "before" if number == 0 else f"before-{number}")


def finish(
    folder: RunDir, endpoint: Endpoint, result: PointResult, *, detailed: bool, notes: Sequence[str] = ()
) -> PointResult:
    """At the end, or at an interrupt: the same files, made of what is there. Needs no server.

    Returns:
        The result as it was written, with what there is to note about its files.
    """
    notes = (*notes, *_server_metrics(folder, endpoint, "after"))
    result = dataclasses.replace(result, notes=(*result.notes, *notes))
    lines = folder.path / "requests.jsonl"
    parts = [path for segment in folder.segments() for path in segment.record_files()]
    told_at_once = not has_turns(result.table)  # of later turns it is known at the end what to expect
    if told_at_once and result.metrics.num_segments == 1 and len(folder.segments()) == 1:
        join_lines(lines, parts)
    else:
        write_lines(lines, result.table)
    write_parquet(folder.path / "requests.parquet", result.table)
    write_csv(folder.path / "requests.csv", result.table)
    join_metrics(folder.path)
    if has_turns(result.table):
        folder.write_text("turns.csv", turns_csv(result.table))
    folder.write_bytes("health.json", msgspec.json.format(result.health.to_json().encode()) + b"\n")
    result = keep_page(folder, result)
    folder.write_text("report.txt", as_text(result, "vllm"))
    keys = {"finished": not result.interrupted, **result_keys(result, detailed=detailed)}
    folder.write_json(SUMMARY, keys)
    return result


def as_text(result: PointResult, style: str) -> str:
    text = StringIO()
    show_point(Console(file=text, width=REPORT_WIDTH, highlight=False), result, style)
    return text.getvalue()


def _server_metrics(folder: RunDir, endpoint: Endpoint, when: str) -> list[str]:
    """A note where the server does not answer: what was measured is worth keeping all the same."""
    try:
        text = endpoint.control.metrics_text()
    except TargetError as error:
        missing = f"no metrics-{when}.txt: {error}"
        sys.stderr.write(f"{missing}\n")
        return [missing]
    if text is not None:
        folder.write_text(f"metrics-{when}.txt", text)
    return []


def result_file(config: ServeConfig, backend: str, model: str | None) -> Path | None:
    """Where `--save-result` goes, as vLLM's client names it. None where nothing is to be saved.

    Raises:
        ConfigError: its folder cannot be made.
    """
    report, load = config.report, config.load
    if not report.writes_file:
        return None
    conc = "" if load.max_concurrency is None else f"-concurrency{load.max_concurrency}"
    name = (model or "model").rstrip("/").rpartition("/")[2]
    rate = f"{load.request_rate}qps"
    made_up = f"{report.label or backend}-{rate}{conc}-{name}-{wall_time_label()}.json"
    path = Path(report.result_dir or ".") / (report.result_filename or plain_word(made_up))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--result-dir {path.parent}: {error.strerror}") from None
    return path


def save(report: ReportConfig, path: Path | None, result: PointResult) -> None:
    """Write what `--save-result` and `--output-file` ask for."""
    if path is not None:
        data = msgspec.json.encode(result_keys(result, detailed=report.save_detailed))
        try:
            with path.open("ab" if report.append_result else "wb") as file:
                file.write((b"\n" if file.tell() else b"") + data)
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror}") from None
    if report.output_file is not None:
        append_line(Path(report.output_file), result_keys(result, detailed=report.save_detailed))


def sweep_folder(label: str | None, kind: str = "sweep") -> Path:
    return RUNS / plain_word("-".join([*([label] if label else []), kind, wall_time_label()]))


def sweep_text(results: Sequence[PointResult], width: int) -> str:
    """The table of a sweep, and the notes of its points, each once, with the points it is about."""
    text = StringIO()
    console = Console(file=text, width=width, highlight=False)
    console.print(points_table(results))
    for note in notes_of_points(results):
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    return text.getvalue()


def lines_of(results: Sequence[PointResult]) -> bytes:
    """One JSON line per point."""
    return b"".join(msgspec.json.encode(result_keys(result)) + b"\n" for result in results)
