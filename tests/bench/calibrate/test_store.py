from __future__ import annotations

from pathlib import Path

import pytest

from prefixlab import __version__
from prefixlab.bench.calibrate.store import (
    Calibration,
    Errors,
    cache_file,
    calibration_notes,
    check,
    load,
    save,
    save_try,
)
from prefixlab.bench.loadgen.health import ClientHealth, NodeClock
from prefixlab.bench.report.environment import machine_name

ERRORS = Errors(count=10, bias_s=1e-6, p50_s=2e-6, p99_s=3e-6, max_s=4e-6)


def calibration(
    *, num_workers: int = 1, tokens_per_s: float = 50_000.0, streams: int = 500, at_least: bool = False
) -> Calibration:
    return Calibration(
        machine=machine_name(),
        version=__version__,
        num_workers=num_workers,
        tokens_per_s=tokens_per_s,
        streams=streams,
        at_least=at_least,
        ttft=ERRORS,
        itl=ERRORS,
        stamps="kernel",
        made="20260101-000000",
    )


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"XDG_CACHE_HOME": str(tmp_path)}


def test_a_run_within_the_calibration_gets_no_warning() -> None:
    assert check(calibration(), tokens_per_s=50_000, streams=500, num_workers=1) is None


PAST = "past what this client was calibrated to, "


@pytest.mark.parametrize(
    ("tokens_per_s", "streams", "at_least", "limit"),
    [
        (61_000.4, 10, False, "50,000 tokens/s"),
        (10, 1000, False, "500 streams"),
        (61_000, 1000, True, "at least 50,000 tokens/s and 500 streams"),
    ],
)
def test_a_run_past_the_calibration_is_told_what_it_went_past(
    tokens_per_s: float, streams: int, at_least: bool, limit: str
) -> None:
    kept = calibration(at_least=at_least)
    warning = check(kept, tokens_per_s=tokens_per_s, streams=streams, num_workers=1)
    assert warning == f"{PAST}{limit}: its own error is unknown"


@pytest.mark.parametrize(
    ("tokens_per_s", "streams", "is_told"),
    [(5_000, 64, False), (5_001, 1, True), (1, 65, True), (0, 0, False)],
)
def test_a_client_never_calibrated_is_told_how_to_once_a_run_is_worth_it(
    tokens_per_s: float, streams: int, is_told: bool
) -> None:
    warning = check(None, tokens_per_s=tokens_per_s, streams=streams, num_workers=2)
    assert (warning is not None) == is_told
    if warning is not None:
        assert warning.startswith("this client was never calibrated here with 2 client processes")
        assert warning.endswith("prefixlab bench calibrate --num-workers 2")


def test_a_runs_notes_go_by_what_is_kept_for_its_client(environ: dict[str, str]) -> None:
    health = ClientHealth(stamps="kernel", num_workers=2, peak_in_flight=65)
    (note,) = calibration_notes(health, 10.0, environ)
    assert "never calibrated" in note
    save(calibration(num_workers=2), environ)
    assert calibration_notes(health, 10.0, environ) == []
    assert calibration_notes(health, None, environ) == [], "no request succeeded"
    (note,) = calibration_notes(health, 50_001.0, environ)
    assert note.startswith(PAST)


def test_a_try_that_proved_nothing_is_remembered(environ: dict[str, str]) -> None:
    health = ClientHealth(stamps="kernel", num_workers=2, peak_in_flight=65)
    save_try(2, "20260101-000000", environ)
    (note,) = calibration_notes(health, 10.0, environ)
    assert "was tried at 20260101-000000, and the machine was too busy" in note
    assert load(2, environ) is None
    save(calibration(num_workers=2), environ)
    assert calibration_notes(health, 10.0, environ) == []


def test_where_no_client_of_this_machine_stands_between_calibration_is_no_matter(
    environ: dict[str, str],
) -> None:
    in_process = ClientHealth(stamps="target", peak_in_flight=65)
    elsewhere = ClientHealth(stamps="kernel", peak_in_flight=65, nodes=[NodeClock("a", 1, 0.0, 0.0)])
    assert calibration_notes(in_process, 1e6, environ) == []
    assert calibration_notes(elsewhere, 1e6, environ) == []


def test_what_is_saved_is_loaded_for_the_same_number_of_client_processes_only(
    environ: dict[str, str],
) -> None:
    save(calibration(num_workers=1), environ)
    save(calibration(num_workers=2, tokens_per_s=90_000), environ)
    assert load(1, environ) == calibration(num_workers=1)
    assert load(2, environ) == calibration(num_workers=2, tokens_per_s=90_000)
    assert load(3, environ) is None


def test_a_newer_calibration_takes_the_place_of_the_older(environ: dict[str, str]) -> None:
    save(calibration(streams=500), environ)
    path = save(calibration(streams=600), environ)
    assert load(1, environ) == calibration(streams=600)
    assert [file.name for file in path.parent.iterdir()] == ["calibration.json"]


def test_another_machine_or_version_counts_as_never_calibrated(environ: dict[str, str]) -> None:
    import msgspec

    save(msgspec.structs.replace(calibration(), machine="another, 64 cores"), environ)
    save(msgspec.structs.replace(calibration(), version="0.0.0"), environ)
    assert load(1, environ) is None


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": {"machine": 1}}', b"[]"])
def test_a_cache_that_cannot_be_read_counts_as_empty_and_is_written_anew(
    environ: dict[str, str], content: bytes
) -> None:
    path = cache_file(environ)
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    assert load(1, environ) is None
    save(calibration(), environ)
    assert load(1, environ) == calibration()


def test_a_relative_cache_home_is_ignored_as_the_standard_says() -> None:
    assert cache_file({"XDG_CACHE_HOME": "here"}) == Path.home() / ".cache/prefixlab/calibration.json"
