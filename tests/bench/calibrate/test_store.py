from __future__ import annotations

from pathlib import Path

import pytest

from prefixlab import __version__
from prefixlab.bench.calibrate.store import Calibration, Errors, cache_file, check, load, save
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


def test_a_run_past_the_calibrated_rate_is_told_both_numbers() -> None:
    warning = check(calibration(), tokens_per_s=61_000.4, streams=10, num_workers=1)
    assert warning == "this run received 61,000 tokens/s; this client was calibrated to 50,000"


def test_a_run_with_more_streams_than_calibrated_is_told() -> None:
    warning = check(calibration(), tokens_per_s=10, streams=1000, num_workers=1)
    assert warning == "this run had 1,000 streams in flight; this client was calibrated to 500"


def test_both_at_once_are_one_sentence_and_a_lower_bound_is_called_one() -> None:
    warning = check(calibration(at_least=True), tokens_per_s=61_000, streams=1000, num_workers=1)
    assert warning == (
        "this run received 61,000 tokens/s and had 1,000 streams in flight; "
        "this client was calibrated to at least 50,000 and 500"
    )


def test_a_client_never_calibrated_says_how_to() -> None:
    warning = check(None, tokens_per_s=1, streams=1, num_workers=2)
    assert warning is not None
    assert warning.startswith("this client was never calibrated here with 2 client processes")
    assert warning.endswith("prefixlab bench calibrate --num-workers 2")


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
