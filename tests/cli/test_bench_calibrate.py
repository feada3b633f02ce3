from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefixlab.cli.main import main


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--max-concurrency", "0"], "--max-concurrency"),
        (["--num-prompts", "0"], "--num-prompts"),
        (["--num-workers", "-1"], "--num-workers"),
        (["--output-len", "1"], "--output-len"),
        (["--request-rate", "0"], "--request-rate"),
        (["--request-rate", "1e-12"], "--request-rate"),
        (["--itl-ms", "0"], "--itl-ms"),
        (["--ttft-ms", "-1"], "--ttft-ms"),
        (["--itl-m", "10"], "--itl-ms"),
    ],
)
def test_a_load_that_cannot_be_is_refused_by_name(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "calibrate", *words]) == 2
    assert named in capsys.readouterr().err


@pytest.mark.service
def test_it_prints_the_clients_error_and_keeps_the_ceiling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    words = ["--max-concurrency", "8", "--output-len", "20", "--ttft-ms", "20", "--itl-ms", "50", "--quick"]
    code = main(["bench", "calibrate", *words])
    out, err = capsys.readouterr()
    assert "client's error" in out and "ceiling: " in out
    assert "8 streams, 160 tokens/s" in err
    kept = tmp_path / "prefixlab" / "calibration.json"
    assert code == (0 if kept.exists() else 3), "a machine too busy to prove anything is a failed gate"
    if kept.exists():
        [calibration] = json.loads(kept.read_text()).values()
        assert calibration["tokens_per_s"] > 0 and calibration["num_workers"] == 1
