"""What calibrating found, where it is kept, and whether a run stayed within it.

Owns the stored form (`calibration.json` in the user's cache folder) and the judgement. Measures nothing.

Invariant: a calibration speaks only for the machine, version and number of client processes it was made with.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from prefixlab import __version__
from prefixlab.bench.loadgen.health import ClientHealth
from prefixlab.bench.report.environment import machine_name

ITL_ERROR_LIMIT_S = 0.0001
"""The error of p99 ITL up to which a client is believed: 0.1 ms."""
MAX_UNCALIBRATED_TOKENS_PER_S, MAX_UNCALIBRATED_STREAMS = 5_000, 64
"""Up to here a client that was never calibrated is believed: a tenth of what one core was seen to hold."""


class Errors(msgspec.Struct, frozen=True, kw_only=True):
    """What the client reported minus what was so, over many measurements of one quantity. Seconds.

    `bias_s` is the mean of the signed errors, the others are of their sizes.
    """

    count: int
    bias_s: float
    p50_s: float
    p99_s: float
    max_s: float


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """The client's own ceiling.

    Attributes:
        num_workers: client processes.
        tokens_per_s, streams: the highest rate and concurrency at which the p99 error of ITL stayed within
            ITL_ERROR_LIMIT_S.
        at_least: the client had not reached its limit: the server it was held against had.
        ttft, itl: the errors there.
        stamps: where arrival times came from: "kernel", "process" or "mixed".
        made: when, as people read it.
    """

    machine: str
    version: str
    num_workers: int
    tokens_per_s: float
    streams: int
    at_least: bool
    ttft: Errors
    itl: Errors
    stamps: str
    made: str


def check(
    calibration: Calibration | None,
    *,
    tokens_per_s: float,
    streams: int,
    num_workers: int,
    tried: str | None = None,
) -> str | None:
    """A sentence of warning if a run went past what this client was calibrated to, or None.

    Where nothing is known, a run within MAX_UNCALIBRATED_… is not warned of: any client does that. What a run
    reached is not in the sentence, so that points of one run say it once.

    Args:
        calibration: what `load` returned.
        tokens_per_s, streams: what the run reached: output tokens a second, and requests in flight.
        num_workers: client processes of the run.
        tried: when calibrating was tried and proved nothing.
    """
    if calibration is None:
        if tokens_per_s <= MAX_UNCALIBRATED_TOKENS_PER_S and streams <= MAX_UNCALIBRATED_STREAMS:
            return None
        workers = f"{num_workers} client process{'es' if num_workers != 1 else ''}"
        how = f"prefixlab bench calibrate --num-workers {num_workers}"
        if tried is not None:
            return (
                f"calibrating this client with {workers} was tried at {tried}, and the machine was too "
                f"busy to prove anything: {how} on a quiet one"
            )
        return f"this client was never calibrated here with {workers}: {how}"
    past = []
    if tokens_per_s > calibration.tokens_per_s:
        past.append(f"{calibration.tokens_per_s:,.0f} tokens/s")
    if streams > calibration.streams:
        past.append(f"{calibration.streams:,} streams")
    if not past:
        return None
    limit = ("at least " if calibration.at_least else "") + " and ".join(past)
    return f"past what this client was calibrated to, {limit}: its own error is unknown"


def calibration_notes(
    health: ClientHealth, tokens_per_s: float | None, environ: Mapping[str, str] = os.environ
) -> list[str]:
    """What `check` says of a run, by what is kept. Nothing where no client of this machine's stands between:
    a target in this process, or client processes elsewhere."""
    if health.stamps == "target" or health.nodes:
        return []
    warning = check(
        load(health.num_workers, environ),
        tokens_per_s=tokens_per_s or 0.0,
        streams=health.peak_in_flight,
        num_workers=health.num_workers,
        tried=tried(health.num_workers, environ),
    )
    return [warning] if warning else []


def load(num_workers: int, environ: Mapping[str, str] = os.environ) -> Calibration | None:
    """The calibration of this machine, version and number of client processes, if there is one."""
    return _read(cache_file(environ)).get(_key(machine_name(), __version__, num_workers))


def save(calibration: Calibration, environ: Mapping[str, str] = os.environ) -> Path:
    """Keep it, in place of an older one of the same machine, version and number of client processes."""
    path = cache_file(environ)
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = _read(path)
    kept[_key(calibration.machine, calibration.version, calibration.num_workers)] = calibration
    _write(path, msgspec.json.encode(kept))
    return path


def save_try(num_workers: int, at: str, environ: Mapping[str, str] = os.environ) -> None:
    """Remember that calibrating proved nothing, beside what was proven at another time."""
    path = _tries_file(environ)
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = _read_tries(path) | {_key(machine_name(), __version__, num_workers): at}
    _write(path, msgspec.json.encode(kept))


def tried(num_workers: int, environ: Mapping[str, str] = os.environ) -> str | None:
    """When calibrating was last tried in vain on this machine, with this version and number of processes."""
    return _read_tries(_tries_file(environ)).get(_key(machine_name(), __version__, num_workers))


def _tries_file(environ: Mapping[str, str]) -> Path:
    return cache_file(environ).with_name("calibration-tries.json")


def _read_tries(path: Path) -> dict[str, str]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, str])
    except (OSError, msgspec.DecodeError):
        return {}


def _write(path: Path, data: bytes) -> None:
    beside = path.with_suffix(f".{os.getpid()}")  # so that nobody reads half a file
    beside.write_bytes(msgspec.json.format(data) + b"\n")
    beside.replace(path)


def cache_file(environ: Mapping[str, str] = os.environ) -> Path:
    """`$XDG_CACHE_HOME/prefixlab/calibration.json`, by default under `~/.cache`."""
    named = environ.get("XDG_CACHE_HOME")
    folder = Path(named) if named and Path(named).is_absolute() else Path.home() / ".cache"
    return folder / "prefixlab" / "calibration.json"


def _key(machine: str, version: str, num_workers: int) -> str:
    return f"{machine} | {version} | {num_workers}"


def _read(path: Path) -> dict[str, Calibration]:
    """What is kept; nothing where it cannot be read: a cache is made anew, not mourned."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Calibration])
    except (OSError, msgspec.DecodeError):
        return {}
