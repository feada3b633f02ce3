"""`prefixlab trace synthesize` as its users see it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefixlab.bench.traces.reading import read_trace
from prefixlab.cli.main import main


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Forty requests of two full blocks and a part, all behind one, by tens behind another."""
    path = tmp_path / "source.jsonl"
    lines = [
        {
            "timestamp": 100 * number,
            "input_length": 2 * 512 + 100 + number,
            "output_length": 5 + number,
            "hash_ids": [0, 1 + number // 10, 100 + number],
        }
        for number in range(40)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_the_result_is_a_trace_and_how_like_its_source_it_is_is_shown(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, figures = tmp_path / "out.jsonl.gz", tmp_path / "figures.json"
    words = ["--num-requests", "100", "--prefix-len-multiplier", "1.5", "--json", str(figures)]
    assert main(["trace", "synthesize", str(source), str(out), *words]) == 0
    result = read_trace(out)
    assert (len(result), result.block_size) == (100, 512)
    shown = capsys.readouterr().out
    assert "Ideal hit rate, tokens" in shown and "KS distance" in shown
    document = json.loads(figures.read_text())
    assert document["prefix_len_multiplier"] == 1.5
    assert document["result"]["num_requests"] == 100
    assert document["result"]["mean_context"] == pytest.approx(1.5 * 1024, rel=0.02)


def test_a_pipe_carries_the_trace_and_nothing_else(
    source: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert main(["trace", "synthesize", str(source), "-", "--seed", "7"]) == 0
    lines = capfdbinary.readouterr().out.splitlines()
    assert len(lines) == 40
    assert all(json.loads(line)["input_length"] >= 1124 for line in lines)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--prefix-root-multiplier", "0.5"], "--prefix-root-multiplier must be at least 1"),
        (["--seed", "-1"], "--seed must not be negative"),
        (["--min-isl", "5000"], "no request is left of source.jsonl"),
        (["--json", "nowhere/figures.json"], "--json"),
        (["--prefix-multiplier", "2"], "--prefix-len-multiplier"),
    ],
)
def test_nonsense_is_named_and_nothing_is_written(
    words: list[str], complaint: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    assert main(["trace", "synthesize", str(source), str(out), *words]) == 2
    assert complaint in capsys.readouterr().err
    assert not out.exists()
