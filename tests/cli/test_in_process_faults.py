from __future__ import annotations

import pytest

from prefixlab.cli.main import main


def test_faults_of_the_http_api_are_refused_where_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--backend", "in-process", "--model", "sim", "--sim-fault", "null-cached", "--no-run-dir"]
    assert main(["bench", "serve", *words, "--num-prompts", "1"]) == 2
    assert "--sim-fault is at the edge of the HTTP API" in capsys.readouterr().err
