"""What each format means: blocks, sessions, times, and what is left out."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixlab.bench.traces.reading import read_trace
from prefixlab.core.errors import ConfigError
from tests.bench.traces.trace_files import (
    AGENTIC,
    AZURE,
    BAILIAN,
    BURSTGPT,
    LENGTHS,
    MOONCAKE,
    ids_of,
    mooncake,
    real_trace,
    write,
)


@settings(deadline=None)
@given(
    block=st.sampled_from([1, 16, 64, 512]),
    lengths=st.lists(st.integers(1, 5000), min_size=12, max_size=30),
    last_has_id=st.booleans(),
)
def test_the_block_size_follows_from_lengths_and_numbers_of_ids(
    block: int, lengths: list[int], last_has_id: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("trace") / "t.jsonl"
    lengths = [*lengths, 4999, 5120]
    counts = [-(-n // block) if last_has_id else n // block for n in lengths]
    write(path, *(mooncake(0, n, list(range(count))) for n, count in zip(lengths, counts, strict=True)))
    trace = read_trace(path)
    assert trace.block_size == block
    assert np.diff(trace.starts).tolist() == counts


def test_a_block_size_nobody_can_tell_must_be_given(tmp_path: Path) -> None:
    path = write(tmp_path / "t", mooncake(0, 100, [0]))
    with pytest.raises(ConfigError, match="give --block-size"):
        read_trace(path)
    assert read_trace(path, block_size=64).block_size == 64


def test_mooncakes_times_are_milliseconds_from_the_first(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path / "t", mooncake(1000, 40, [0, 1, 2]), mooncake(3500.25, 33, [0, 1, 3])))
    assert trace.offsets_s.tolist() == [0, 2.50025]
    assert ids_of(trace) == [[0, 1, 2], [0, 1, 3]]
    assert trace.session_ids is None
    assert trace.block_size == 16


def test_lines_without_ids_say_nothing_of_sharing_and_without_timestamps_nothing_of_time(
    tmp_path: Path,
) -> None:
    bare = {"input_length": 40, "output_length": 5}
    trace = read_trace(write(tmp_path / "t", bare, bare))
    assert not trace.has_ids and not trace.has_times
    assert trace.sketches.offsets_s is None
    assert trace.sketches.shared_tokens.tolist() == [0, 0]


def test_sessions_without_any_times_are_in_the_order_of_lines(tmp_path: Path) -> None:
    bare = {"input_length": 40, "output_length": 5, "hash_ids": [0, 1, 2]}
    turns = (
        {**bare, "session_id": "x"},
        {**bare, "session_id": "x", "delay": 5},
        {**bare, "session_id": "x"},
    )
    trace = read_trace(write(tmp_path / "t", *turns), block_size=16)
    assert not trace.has_times
    assert trace.turns is not None and trace.turns.tolist() == [0, 1, 2]
    assert trace.think_s is not None
    np.testing.assert_array_equal(trace.think_s, [math.nan, 0.005, math.nan])


def test_rows_of_sessions_may_stand_session_by_session_and_are_put_in_order_of_time(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t",
        mooncake(0, 40, [0, 1, 2], session_id="x"),
        {
            "input_length": 70,
            "output_length": 5,
            "hash_ids": [0, 1, 3, 4, 5],
            "session_id": "x",
            "delay": 900,
        },
        mooncake(500, 20, [8, 9], session_id=7),
        mooncake(2000, 36, [8, 9, 10], session_id=7, delay=250),
        mooncake(3000, 20, [11, 12]),
    )
    trace = read_trace(path)
    assert trace.block_size == 16
    assert list(trace.session_ids or ()) == ["x", "7", "x", "7", "line-5"]
    assert trace.turns is not None and trace.turns.tolist() == [0, 0, 1, 1, 0]
    # A turn without a timestamp came no earlier than the one before and its delay.
    assert trace.offsets_s.tolist() == [0, 0.5, 0.9, 2, 3]
    assert trace.think_s is not None
    np.testing.assert_array_equal(trace.think_s, [math.nan, math.nan, 0.9, 0.25, math.nan])
    assert ids_of(trace)[2] == [0, 1, 3, 4, 5]
    assert list(read_trace(path, num_requests=2).session_ids or ()) == ["x", "7"]


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ({**MOONCAKE, "session_id": "x", "timestamp": 50}, "time goes back within session x"),
        (
            {"input_length": 40, "output_length": 5, "hash_ids": [0, 1, 2], "session_id": "x"},
            "a later turn needs a timestamp or a delay",
        ),
    ],
)
def test_a_turn_that_cannot_follow_is_named(tmp_path: Path, turn: object, message: str) -> None:
    with pytest.raises(ConfigError, match=f"t:2: {message}"):
        read_trace(
            write(tmp_path / "t", {**MOONCAKE, "session_id": "x", "timestamp": 100}, turn), block_size=16
        )


def test_bailians_chats_are_chains_from_parent_to_child(tmp_path: Path) -> None:
    def chat(chat: int, parent: int, time_s: float) -> dict[str, object]:
        return {**BAILIAN, "chat_id": chat, "parent_chat_id": parent, "timestamp": time_s}

    path = write(
        tmp_path / "t",
        chat(1, -1, 2),
        chat(2, -1, 3),
        chat(3, 1, 4),
        chat(4, 3, 5),
        chat(5, 1, 6),
        chat(6, 99, 7),
    )
    trace = read_trace(path)
    assert trace.block_size == 16
    assert trace.offsets_s.tolist() == [0, 1, 2, 3, 4, 5]
    # 5 asks anew what 3 answered already, and the parent of 6 is not in the file: both begin a chain.
    assert list(trace.session_ids or ()) == ["1", "2", "1", "1", "5", "6"]
    assert trace.turns is not None and trace.turns.tolist() == [0, 0, 1, 2, 0, 0]


def test_azures_times_are_exact_with_and_without_a_zone(tmp_path: Path) -> None:
    of_2023 = write(
        tmp_path / "a", AZURE, "2023-11-16 18:17:03.9799600,40,5", "2023-11-16 18:17:03.9799601,1,1"
    )
    of_2024 = write(
        tmp_path / "b", AZURE, "2024-05-10 00:00:00+00:00,40,5", "2024-05-12 00:00:00.5+00:00,1,1"
    )
    assert read_trace(of_2023).offsets_s.tolist() == [0, 1e-7]
    assert read_trace(of_2024).offsets_s.tolist() == [0, 2 * 86400 + 0.5]


def test_requests_that_failed_are_left_out_and_counted(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t",
        BURSTGPT,
        "5,ChatGPT,472,18,490,Conversation log",
        "45,ChatGPT,1087,0,1087,Conversation log",
        '118,"ChatGPT, the old one",417,276,693,Conversation log',
    )
    trace = read_trace(path)
    assert trace.prompt_tokens.tolist() == [472, 417]
    assert trace.offsets_s.tolist() == [0, 113]
    assert trace.notes == ("1 of 3 lines left out: requests that failed, recorded with 0 tokens",)
    assert read_trace(path, num_requests=2).prompt_tokens.tolist() == [472, 417]


def test_a_failure_that_comes_first_is_not_the_beginning(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path / "t", BURSTGPT, "1,x,5,0,5,API log", "9,x,5,5,10,API log"))
    assert trace.offsets_s.tolist() == [0]
    with pytest.raises(ConfigError, match="holds no request"):
        read_trace(write(tmp_path / "f", BURSTGPT, "1,x,5,0,5,API log"))


def test_a_table_of_lengths_has_times_only_where_it_says_so(tmp_path: Path) -> None:
    assert not read_trace(write(tmp_path / "a", LENGTHS, "40,5,45,8.0")).has_times
    timed = read_trace(
        write(tmp_path / "b", "arrived_at,num_prefill_tokens,num_decode_tokens", "2,4,5", "2.5,4,5")
    )
    assert timed.has_times
    assert timed.offsets_s.tolist() == [0, 0.5]


def test_agentic_sessions_lie_beside_each_other_and_share_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "t", AGENTIC, {**AGENTIC, "id": "b"})
    trace = read_trace(path)
    assert trace.block_size == 16
    assert trace.offsets_s.tolist() == [0, 30, 40, 70]
    assert list(trace.session_ids or ()) == ["a", "b", "a", "b"]
    assert trace.turns is not None and trace.turns.tolist() == [0, 0, 1, 1]
    assert trace.think_s is not None
    np.testing.assert_array_equal(trace.think_s, [math.nan, math.nan, 3, 3])
    assert ids_of(trace) == [[1, 2], [11, 12], [1, 7, 8, 9], [11, 17, 18, 19]]
    assert read_trace(path, session_interval_s=1).offsets_s.tolist() == [0, 1, 40, 41]
    first = read_trace(path, num_requests=3)
    assert ids_of(first) == ids_of(trace)[:3]


def test_an_answer_recorded_with_no_token_is_taken_to_have_one_and_told(tmp_path: Path) -> None:
    empty = {**AGENTIC, "requests": [{"t": 1, "isl": 40, "osl": 0, "runs": [[1, 2]]}]}
    trace = read_trace(write(tmp_path / "t", empty))
    assert trace.output_tokens.tolist() == [1]
    assert trace.notes == ("1 of 1 answers, recorded with 0 tokens, are taken to have 1",)


def test_empty_answers_are_counted_among_the_requests_asked_for_alone(tmp_path: Path) -> None:
    turns = [{"t": t, "isl": 40, "osl": osl, "runs": [[1, 3]]} for t, osl in enumerate((0, 5, 0, 0))]
    path = write(tmp_path / "t", {**AGENTIC, "requests": turns})
    (note,) = read_trace(path, num_requests=3).notes
    assert note.startswith("2 of 3 answers")
    assert read_trace(path, num_requests=2).notes[0].startswith("1 of 2 answers")


@pytest.mark.parametrize(
    ("file", "requests", "block", "refs", "unique", "mean_input", "mean_output"),
    [
        ("mooncake_conversation.jsonl.gz", 12_031, 512, 288_500, 182_790, 12_035.1, 342.6),
        ("sharegpt300_qwen3_b16.jsonl.gz", 300, 16, 16_034, 14_756, 862.3, 665.0),
        ("sharegpt300_llama31_b16.jsonl.gz", 300, 16, 15_942, 14_722, 857.5, 652.5),
        ("agentic_claude_code_weka.jsonl.gz", 19_457, 64, 36_154_995, 1_351_028, 118_956, 425.3),
        ("azure_llm_2023_code.csv.gz", 8_819, 1, 0, 0, 2_047.8, 27.9),
        ("azure_llm_2023_conv.csv.gz", 19_366, 1, 0, 0, 1_154.7, 211.1),
        ("lengths_arxiv_summarization.csv.gz", 28_257, 1, 0, 0, 2_588.1, 291.4),
    ],
)
def test_public_traces_are_read_to_their_known_figures(
    file: str, requests: int, block: int, refs: int, unique: int, mean_input: float, mean_output: float
) -> None:
    trace = read_trace(real_trace(file))
    assert (len(trace), trace.block_size, len(trace.hash_ids)) == (requests, block, refs)
    assert np.count_nonzero(np.bincount(trace.hash_ids)) == unique
    assert trace.prompt_tokens.mean() == pytest.approx(mean_input, rel=5e-5)
    assert trace.output_tokens.mean() == pytest.approx(mean_output, abs=0.06)
    assert (np.diff(trace.offsets_s) >= 0).all()
