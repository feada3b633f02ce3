from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prefixlab.core.errors import ConfigError
from prefixlab.core.step_time.built_in import PROFILES
from prefixlab.core.step_time.model import LinearStepTime
from prefixlab.core.step_time.profile import (
    Provenance,
    Spread,
    StepTimeProfile,
    read_profile,
    write_profile,
)

MEASURED = StepTimeProfile(
    provenance=Provenance(
        machine="a machine",
        model="a model",
        method="200 steps of random shapes, least squares",
        source="an engine 1.2",
        spread=Spread(num_samples=200, median_error=0.02, max_error=0.3),
    ),
    step_time=LinearStepTime(fixed_s=0.1, decode_row_s=1e-7),
)


@pytest.mark.parametrize("profile", [MEASURED, *PROFILES.values()])
def test_a_profile_written_is_the_profile_read(profile: StepTimeProfile, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    write_profile(path, profile)
    assert read_profile(path) == profile


def written(tmp_path: Path, **changes: Any) -> Path:
    """A good file but for `changes`; None takes a key out."""
    content = {
        "format": "prefixlab-step-time",
        "version": 1,
        "provenance": {"machine": "m", "model": "n", "method": "o"},
        "step_time": {"kind": "linear", "fixed_s": 0.1},
    } | changes
    path = tmp_path / "profile.json"
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return path


def test_coefficients_left_out_are_zero(tmp_path: Path) -> None:
    assert read_profile(written(tmp_path)).step_time == LinearStepTime(fixed_s=0.1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": None}, "prefixlab-step-time"),
        ({"format": "another"}, "prefixlab-step-time"),
        ({"version": 2}, "version.* is 2"),
        ({"version": None}, "version.* is None"),
        ({"provenance": None}, "provenance"),
        ({"provenance": {"machine": "m", "model": "n"}}, "method"),
        ({"provenance": {"machine": "m", "model": "n", "method": "o", "spred": 1}}, "spred"),
        ({"step_time": {"kind": "cubic"}}, "cubic"),
        ({"step_time": {"fixed_s": 0.1}}, "kind"),
        ({"step_time": {"kind": "linear", "fixed_ms": 0.1}}, "fixed_ms"),
        ({"step_time": {"kind": "linear", "fixed_s": "fast"}}, "fixed_s"),
        ({"step_time": {"kind": "linear", "fixed_s": -0.1}}, "fixed_s"),
        ({"note": ""}, "note"),
    ],
)
def test_what_cannot_be_run_is_refused_with_file_and_place(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"profile.json.*{said}"):
        read_profile(written(tmp_path, **changes))


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"7", b"\xff\xfe", b"[" * 100_000, b'{"format": 1e999}'])
def test_what_is_no_json_object_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"profile\.json is not a step-time profile"):
        read_profile(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.json: No such file"):
        read_profile(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="none"):
        write_profile(tmp_path / "none" / "profile.json", MEASURED)
