"""Settings of what is told and kept: figures, files, names.

Owns the flags vLLM's and SGLang's users know for results. Writes nothing.

Invariant: whatever is asked to be written is checked to be writable before anything is sent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from prefixlab.bench.metrics.goodput import Objectives
from prefixlab.core.config import setting
from prefixlab.core.errors import ConfigError

METRICS = ("ttft", "tpot", "itl", "e2el")
ALWAYS_TOLD = ("client_queue_time", "e2el_including_client_queue")
"""vLLM's names of what is told in any open loop: send lag, and E2E from the schedule."""
STYLES = ("vllm", "table", "json")
RUNS = Path("runs")
MIN_SCRAPE_INTERVAL_S = 0.05
NO_FOLDER = ""
"""`run_dir` when nothing is to be kept."""


@dataclass(frozen=True)
class ReportConfig:
    """What to show, and where results go."""

    style: str = setting("vllm", "form of the result on the screen", choices=STYLES)
    percentile_metrics: str = setting(
        "ttft,tpot,itl,e2el", "metrics to show percentiles of", metavar="METRIC,METRIC,…"
    )
    metric_percentiles: str = setting("90,95,99", "percentiles to show and save", metavar="P,P,…")
    goodput: tuple[str, ...] = setting(
        (),
        "objectives in milliseconds (ttft, tpot, e2el), as ttft:500 tpot:50; a sweep's point passes where at "
        "least 99 % of its requests meet all",
        metavar="METRIC:MS",
    )
    label: str | None = setting(
        None, "name at the front of result files and run directories", aliases=("--tag",)
    )
    metadata: tuple[str, ...] = setting((), "notes to save with the result", metavar="K=V")
    run_dir: str | None = setting(
        None,
        "folder to keep everything in (default: runs/ and a name made of settings and time)",
        metavar="DIR",
    )
    save_result: bool = setting(
        False, "write the result as vLLM's client does: one JSON file, of a sweep one per point"
    )
    save_detailed: bool = setting(False, "put every request's figures into that file too")
    append_result: bool = setting(False, "append the result to that file instead of replacing it")
    result_dir: str | None = setting(
        None, "folder of the file of --save-result (default: here)", metavar="DIR"
    )
    result_filename: str | None = setting(
        None,
        "name of the file of --save-result (default: made of label, rate, model and time; a sweep's points "
        "take that)",
        metavar="FILE",
    )
    output_file: str | None = setting(
        None, "append the result as one JSON line to this file, as SGLang's client does", metavar="FILE"
    )
    save_workload: str | None = setting(
        None,
        "write the requests to this file, to send them again with --dataset-name saved (.gz compresses; of "
        "several points or repeats one file each, named so)",
        metavar="FILE",
    )
    scrape_interval: float = setting(
        1.0, "keep the server's own metrics, fetched so often during a run; 0: do not", metavar="SECONDS"
    )
    strict: bool = setting(
        False,
        "exit with 3 unless every request succeeded and the cache served what an ideal one would have",
    )
    progress: bool = setting(True, "show on stderr how far the run is")

    def __post_init__(self) -> None:
        self.metrics()
        self.percentiles()
        self.metadata_pairs()
        self.objectives()
        if not (self.scrape_interval == 0 or MIN_SCRAPE_INTERVAL_S <= self.scrape_interval < math.inf):
            raise ConfigError(
                f"--scrape-interval is 0 (off) or at least {MIN_SCRAPE_INTERVAL_S:g} seconds, not "
                f"{self.scrape_interval:g}"
            )
        _check_file("--output-file", self.output_file)
        _check_file("--save-workload", self.save_workload)
        if self.writes_file:
            _check_file("--result-filename", self.result_filename, self.result_dir)
        if (self.save_detailed or self.append_result) and not self.writes_result:
            raise ConfigError(
                "--save-detailed and --append-result shape the file of --save-result: give that"
            )

        named = {"--result-dir": self.result_dir, "--result-filename": self.result_filename}
        if given := [flag for flag, value in named.items() if value is not None and not self.writes_file]:
            raise ConfigError(f"{' and '.join(given)}: nothing is written there without --save-result")

    @property
    def writes_file(self) -> bool:
        """The one vLLM's client writes."""
        return self.save_result or self.append_result

    @property
    def writes_result(self) -> bool:
        return self.writes_file or self.output_file is not None

    def metrics(self) -> tuple[str, ...]:
        """Those to show, but for what is always shown."""
        names = [name.strip() for name in self.percentile_metrics.split(",")]
        for name in names:
            if name not in (*METRICS, *ALWAYS_TOLD):
                raise ConfigError(f"--percentile-metrics takes {', '.join(METRICS)}, not {name!r}")
        return tuple(name for name in names if name in METRICS)

    def percentiles(self) -> tuple[float, ...]:
        try:
            percentiles = tuple(float(part) for part in self.metric_percentiles.split(","))
        except ValueError:
            percentiles = (-1.0,)
        if not all(0 < percentile < 100 for percentile in percentiles):
            raise ConfigError(
                f"--metric-percentiles takes numbers between 0 and 100 with commas between, not "
                f"{self.metric_percentiles!r}"
            )
        return percentiles

    def metadata_pairs(self) -> dict[str, str]:
        pairs = {}
        for word in self.metadata:
            name, equals, value = word.partition("=")
            if not (name and equals):
                raise ConfigError(f"--metadata takes K=V, not {word!r}")
            pairs[name] = value
        return pairs

    def objectives(self) -> Objectives | None:
        return Objectives.parse(self.goodput) if self.goodput else None


def _check_file(flag: str, name: str | None, made: str | None = ".") -> None:
    """Of a file to be written, if there is one. `made`: a folder that is made if it is not there (the one we
    are in always is)."""
    if name is None:
        return
    file, folder = Path(made or ".") / name, Path(made or ".")
    if file.is_dir():
        raise ConfigError(f"{flag} {name}: that is a folder, not a file")
    parent = file.absolute().parent
    if not parent.is_dir() and parent != folder.absolute():
        raise ConfigError(f"{flag} {name}: its folder is not there")
