"""A step-time profile: a model of how long steps take, and where it comes from, in one JSON file.

    {
      "format": "prefixlab-step-time",
      "version": 1,
      "provenance": {
        "machine": "1 x NVIDIA H200", "model": "Llama-3.1-8B, bfloat16", "method": "…", "source": "…",
        "spread": {"num_samples": 120, "median_error": 0.03, "max_error": 0.2}
      },
      "step_time": {"kind": "linear", "fixed_s": 0.006, "prefill_token_s": 2e-5}
    }

Owns that format. Written by whoever measures (a profiler, a fit of a log), read by whoever simulates.

Invariant: what is read can be run: known format, version, kind and fields, numbers checked; otherwise a
ConfigError that names the file and the place in it.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from prefixlab.core.errors import ConfigError
from prefixlab.core.step_time.model import StepTimeModel

FORMAT, VERSION = "prefixlab-step-time", 1


class Spread(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How well the model fits what was measured: |model ÷ measured − 1| over the samples."""

    num_samples: int
    median_error: float
    max_error: float


class Provenance(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Where the numbers come from, for people.

    Attributes:
        machine: what the steps ran on, or are imagined to.
        model: the language model, with its dtype.
        method: how it was measured, or worked out.
        source: software and version, file or paper the data are from.
        spread: None where the model was not compared with measurements of whole steps.
    """

    machine: str
    model: str
    method: str
    source: str | None = None
    spread: Spread | None = None


class StepTimeProfile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    format: str = FORMAT
    version: int = VERSION
    provenance: Provenance
    step_time: StepTimeModel


def read_profile(path: Path) -> StepTimeProfile:
    """Raises ConfigError: not there, or not a profile that this version can run."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    try:
        given = msgspec.json.decode(data)
        _check_header(given)
        return msgspec.convert(given, StepTimeProfile)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ConfigError) as error:
        raise ConfigError(f"{path} is not a step-time profile: {error}") from None


def write_profile(path: Path, profile: StepTimeProfile) -> None:
    """Raises ConfigError: it cannot be written."""
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(profile)) + b"\n")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None


def _check_header(given: object) -> None:
    """Before anything else: a file of another format or time is told as that, not by its first odd field."""
    if not isinstance(given, dict) or given.get("format") != FORMAT:
        raise ConfigError(f'"format" must be "{FORMAT}"')
    if given.get("version") != VERSION:
        raise ConfigError(f'"version" is {given.get("version")!r}; this program reads {VERSION}')
    step_time = given.get("step_time")
    if isinstance(step_time, dict) and "kind" not in step_time:  # which msgspec lets pass, of a single kind
        raise ConfigError('"step_time" has no "kind"')
