"""What is written is what is read again, and a file is there whole or not at all."""

from __future__ import annotations

import gzip
import io
import json
import stat
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixlab.bench.traces.reading import read_trace
from prefixlab.bench.traces.trace import Trace
from prefixlab.bench.traces.writing import block_size_to_give, write_mooncake
from prefixlab.core.errors import ConfigError
from tests.bench.traces.trace_files import (
    AGENTIC,
    AZURE,
    BAILIAN,
    LENGTHS,
    a_trace,
    ids_of,
    real_trace,
    write,
)

SHARING = a_trace((40, [0, 1, 2]), (33, [0, 1, 3]))


def lines_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_same(one: Trace, other: Trace) -> None:
    assert (one.block_size, one.has_times) == (other.block_size, other.has_times)
    np.testing.assert_allclose(one.offsets_s, other.offsets_s, rtol=0, atol=1e-9)
    assert one.prompt_tokens.tolist() == other.prompt_tokens.tolist()
    assert one.output_tokens.tolist() == other.output_tokens.tolist()
    assert (one.starts == other.starts).all() and (one.hash_ids == other.hash_ids).all()
    assert list(one.session_ids or ()) == list(other.session_ids or ())
    if one.turns is not None:
        assert other.turns is not None and one.turns.tolist() == other.turns.tolist()
        np.testing.assert_array_equal(one.think_s, other.think_s)


def test_a_line_says_what_mooncakes_lines_say(tmp_path: Path) -> None:
    write_mooncake(SHARING, tmp_path / "t.jsonl")
    assert lines_of(tmp_path / "t.jsonl") == [
        {"timestamp": 0, "input_length": 40, "output_length": 4, "hash_ids": [0, 1, 2]},
        {"timestamp": 1000, "input_length": 33, "output_length": 4, "hash_ids": [0, 1, 3]},
    ]


@pytest.mark.parametrize(
    "lines",
    [
        (AGENTIC, {**AGENTIC, "id": "b"}),
        (BAILIAN, {**BAILIAN, "chat_id": 2, "parent_chat_id": 1}, {**BAILIAN, "chat_id": 3}),
        (AZURE, "2023-11-16 18:17:03.9799600,40,5", "2023-11-16 18:17:03.9799601,33,5"),
        (LENGTHS, "40,5,45,8.0"),
    ],
)
def test_every_format_becomes_mooncakes_and_loses_nothing(tmp_path: Path, lines: tuple[object, ...]) -> None:
    trace = read_trace(write(tmp_path / "t", *lines))
    write_mooncake(trace, tmp_path / "out")
    assert_same(read_trace(tmp_path / "out", block_size=trace.block_size), trace)


def test_where_the_lines_do_not_tell_the_block_size_somebody_says_it(tmp_path: Path) -> None:
    telling = a_trace((40, [0, 1, 2]), (33, [0, 1, 3]))
    assert block_size_to_give(telling) is None
    assert block_size_to_give(a_trace((40, []))) is None
    for silent in (a_trace((300, [7]), (300, [7]), block_size=512), a_trace((96, [0, 1]), block_size=48)):
        write_mooncake(silent, tmp_path / "t")
        assert f"--block-size {silent.block_size}" in (block_size_to_give(silent) or "")
        with suppress(ConfigError):
            assert read_trace(tmp_path / "t").block_size != silent.block_size
        assert_same(read_trace(tmp_path / "t", block_size=silent.block_size), silent)


@pytest.mark.parametrize(
    "file", ["mooncake_conversation.jsonl.gz", "sharegpt300_qwen3_b16.jsonl.gz", "azure_llm_2023_code.csv.gz"]
)
def test_public_traces_go_there_and_back(tmp_path: Path, file: str) -> None:
    trace = read_trace(real_trace(file))
    write_mooncake(trace, tmp_path / "out.gz")
    assert_same(read_trace(tmp_path / "out.gz"), trace)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 10**9), st.integers(1, 500), st.integers(1, 10**6), st.integers(0, 3)),
        min_size=1,
        max_size=20,
    ),
    st.booleans(),
)
def test_any_trace_goes_there_and_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, int, int, int]], in_sessions: bool
) -> None:
    path = tmp_path_factory.mktemp("out") / "t"
    rows = sorted(rows)
    trace = replace(
        a_trace(*((length, list(range(first, first - -length // 16))) for _, length, first, _ in rows)),
        offsets_s=np.array([(nanoseconds - rows[0][0]) / 1e9 for nanoseconds, *_ in rows]),
    )
    if in_sessions:
        names = [str(session) for *_, session in rows]
        turns = [names[:row].count(name) for row, name in enumerate(names)]
        think_s = [
            first / 1e3 if turn else np.nan for (_, _, first, _), turn in zip(rows, turns, strict=True)
        ]
        trace = replace(trace, session_ids=names, turns=np.array(turns), think_s=np.array(think_s))
    write_mooncake(trace, path)
    assert_same(read_trace(path, block_size=16), trace)


def test_the_same_trace_is_the_same_file_compressed_too(tmp_path: Path) -> None:
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        write_mooncake(SHARING, tmp_path / name)
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()
    assert len(gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes()).splitlines()) == 2


def test_a_dash_is_standard_output(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    write_mooncake(SHARING, "-")
    assert read_lines(capfdbinary.readouterr().out) == 2


def read_lines(content: bytes) -> int:
    return len(io.BytesIO(content).readlines())


def test_what_breaks_off_leaves_the_file_before_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_text("what was there")

    def break_off(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_mooncake(SHARING, path, break_off)
    assert path.read_text() == "what was there"
    assert [found.name for found in tmp_path.iterdir()] == ["t"]


def test_the_file_may_be_read_by_whom_other_files_may(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("")
    write_mooncake(SHARING, tmp_path / "t")
    assert stat.S_IMODE((tmp_path / "t").stat().st_mode) == stat.S_IMODE((tmp_path / "other").stat().st_mode)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing/t cannot be written"):
        write_mooncake(SHARING, tmp_path / "missing" / "t")
    with pytest.raises(ConfigError, match="cannot be written"):
        write_mooncake(SHARING, tmp_path)


def test_how_far_it_has_come_is_told(tmp_path: Path) -> None:
    told: list[int] = []
    many = a_trace(*((40, [0, 1, 2]) for _ in range(2500)))
    write_mooncake(many, tmp_path / "t", told.append)
    assert told == [1000, 2000, 2500]
    assert len(ids_of(read_trace(tmp_path / "t", block_size=16))) == 2500
