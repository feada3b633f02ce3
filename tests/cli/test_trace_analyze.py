from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prefixlab.cli.main import main

LINES = [
    {"timestamp": 0, "input_length": 30, "output_length": 1, "hash_ids": [0, 1, 2, 3]},
    {"timestamp": 1000, "input_length": 32, "output_length": 2, "hash_ids": [0, 1, 4, 5]},
    {"timestamp": 3000, "input_length": 30, "output_length": 3, "hash_ids": [0, 1, 2, 3]},
    {"timestamp": 3000, "input_length": 8, "output_length": 4, "hash_ids": [6]},
]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return write(tmp_path / "trace.jsonl", LINES)


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def words(shown: str) -> list[str]:
    return [" ".join(line.split()) for line in shown.splitlines()]


def test_everything_is_shown(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--capacity", "4blocks,1kB", "--kv-bytes-per-token", "20"]
    assert main(["trace", "analyze", str(trace), *sizes]) == 0
    out, err = capsys.readouterr()
    lines = words(out)
    assert lines[0] == (
        "trace.jsonl: 4 requests over 3.0 s, 100 prompt tokens, 10 output tokens, blocks of 8 tokens"
    )
    assert "Mean Std Dev Min P25 Median P75 Max" in lines
    assert "Input Length 25.0 9.8 8.0 24.5 30.0 30.5 32.0" in lines
    assert "Context Length 19.0 12.4 0.0 12.0 23.0 30.0 30.0" in lines
    assert "Unique Prompt Length 6.0 6.6 0.0 0.0 4.0 10.0 16.0" in lines
    assert "Output Length 2.5 1.1 1.0 1.8 2.5 3.2 4.0" in lines
    assert "Theoretical Hit Rates, % 37.5 41.5 0.0 0.0 25.0 62.5 100.0" in lines
    assert "Arrivals: 1.000 requests/s, 1.000 in the busiest 3 s, burstiness 1.500 (CV of gaps 0.82)" in lines
    assert "Tree of prefixes: 2 roots, 4 nodes, of which 3 leaves; at most 2 nodes and 4 blocks deep" in lines
    assert "Distinct blocks: 7, of which 3 (42.9 %) are used once" in lines
    assert "16 16 3 32 32.00" in lines
    # By hand: 2 blocks of the second request, 4 of the third (30 tokens, as the last block is not full).
    assert "unlimited 7 56 0.00 100.00 46.154 46.000 100.0" in lines
    assert "4blocks 4 32 0.00 57.14 30.769 32.000 66.7" in lines
    assert "Other distinct blocks 3 3 3 5 5 5" in lines
    assert err == ""


def test_every_column_of_the_table_of_caches_has_a_name_of_its_own_and_rates_are_percent(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["trace", "analyze", str(trace)]) == 0
    heading = "capacity blocks tokens of unique % hit %, by blocks by tokens of ideal %"
    assert heading in words(capsys.readouterr().out)


def test_even_spacing_is_told_as_such_and_written_as_the_flag_takes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    even = write(tmp_path / "even.jsonl", [{**LINES[3], "timestamp": 100 * i} for i in range(19)])
    assert main(["trace", "analyze", str(even), "--block-size", "8"]) == 0
    told = "Arrivals: 10.000 requests/s, 10.000 in the busiest 1.8 s, burstiness inf (even gaps)"
    assert told in words(capsys.readouterr().out)
    assert main(["trace", "analyze", str(even), "--block-size", "8", "--json"]) == 0
    arrivals = json.loads(capsys.readouterr().out)["arrivals"]
    assert (arrivals["burstiness"], arrivals["gap_cv"], arrivals["busy_s"]) == ("inf", 0, 1.8)


def test_json_goes_to_standard_output_in_place_of_the_tables(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["trace", "analyze", str(trace), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["format_version"] == 1
    assert (document["num_requests"], document["block_size"]) == (4, 8)
    assert document["cache"]["ideal_by_tokens"] == 0.46
    assert document["lengths"]["context_tokens"]["median"] == 23
    assert set(document) == {
        *("prefixlab_version", "format_version", "trace", "num_requests", "block_size", "num_prompt_tokens"),
        *("num_output_tokens", "lengths", "arrivals", "sessions", "sharing", "cache", "reuse", "notes"),
    }


def test_json_and_a_picture_go_to_files_beside_the_tables(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / "figures.json", tmp_path / "picture.png"]
    assert main(["trace", "analyze", str(trace), "--json", str(files[0]), "--plot", str(files[1])]) == 0
    assert "Input Length" in capsys.readouterr().out
    assert json.loads(files[0].read_bytes())["num_requests"] == 4
    assert files[1].read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(LINES[:1], id="one request"),
        pytest.param([{**line, "hash_ids": []} for line in LINES], id="no blocks"),
        pytest.param([LINES[0], {**LINES[3], "timestamp": 0}], id="all at once"),
    ],
)
def test_a_picture_is_drawn_of_any_trace(tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    trace, picture = tmp_path / "trace.jsonl", tmp_path / "picture.svg"
    write(trace, [{**line, "input_length": 7} if not line["hash_ids"] else line for line in lines])
    block_size = ["--block-size", "8"] if lines[0]["hash_ids"] else []
    assert main(["trace", "analyze", str(trace), "--plot", str(picture), *block_size]) == 0
    assert "<svg" in picture.read_text()


def test_only_the_first_requests_are_looked_at_where_asked(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["trace", "analyze", str(trace), "--num-requests", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_requests"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--block-size", "4"], "trace.jsonl:1: 30 tokens are 7 full blocks of 4"),
        (["--trace-format", "nobody"], "nobody"),
        (["--capacity", "5GiB"], "--capacity 5GiB is in bytes"),
        (["--plot", "picture.txt"], "--plot picture.txt: the name must end in"),
        (["--json", "/nowhere/figures.json"], "--json /nowhere/figures.json: there is no folder"),
        (["--capicity", "5"], "did you mean '--capacity'"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    trace: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["trace", "analyze", str(trace), *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--capacity", "5"], ["--kv-bytes-per-token", "5"]])
def test_sizes_of_a_cache_are_refused_where_the_trace_names_no_blocks(
    tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("num_prefill_tokens,num_decode_tokens\n5,6\n")
    assert main(["trace", "analyze", str(trace), *options]) == 2
    assert f"{options[0]}: trace.csv names no blocks" in capsys.readouterr().err
