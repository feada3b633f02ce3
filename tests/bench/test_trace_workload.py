from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixlab.bench.workloads.tokens import Vocabulary
from prefixlab.bench.workloads.trace import (
    Trace,
    TraceRequest,
    fit_trace,
    ideal_cached_tokens,
    make_probe,
    make_prompts,
    read_trace,
)
from prefixlab.bench.workloads.wording import common_prefix
from prefixlab.core.block_hash import as_token_ids
from prefixlab.core.errors import ConfigError
from prefixlab.core.hit_oracle import expected_cached_tokens

VOCABULARY = Vocabulary.of_size(4096, "test")
LINE = {"timestamp": 0, "input_length": 40, "output_length": 5, "hash_ids": [0, 1, 2]}


def write(path: Path, *lines: object) -> Path:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text(text + "\n")
    return path


def line(timestamp: float, length: int, ids: list[int], output: int = 5) -> dict[str, object]:
    return {"timestamp": timestamp, "input_length": length, "output_length": output, "hash_ids": ids}


def a_trace(*requests: tuple[int, tuple[int, ...]], block_size: int = 16) -> Trace:
    return Trace("t", block_size, tuple(TraceRequest(0.0, length, 4, ids) for length, ids in requests))


def test_a_trace_is_read_plain_or_compressed(tmp_path: Path) -> None:
    lines = [line(1000, 40, [0, 1, 2]), line(3500, 33, [0, 1, 3])]
    plain = read_trace(write(tmp_path / "t.jsonl", *lines))
    compressed = tmp_path / "t.jsonl.gz"
    compressed.write_bytes(gzip.compress((tmp_path / "t.jsonl").read_bytes()))
    assert read_trace(compressed).requests == plain.requests
    assert plain.block_size == 16
    assert plain.requests[1] == TraceRequest(2.5, 33, 5, (0, 1, 3))


def test_only_as_many_requests_as_wanted_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", LINE, LINE, "broken, but behind what is wanted")
    assert len(read_trace(path, num_requests=2).requests) == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("{not json", "malformed"),
        ({**LINE, "input_lenght": 3}, "input_lenght"),
        ({"timestamp": 0}, "missing required field"),
        ({**LINE, "input_length": "40"}, "input_length"),
        ({**LINE, "input_length": 0}, "at least 1"),
        ({**LINE, "hash_ids": [0, -1, 2]}, "negative"),
        ({**LINE, "timestamp": -1}, "time goes back"),
        ({**LINE, "hash_ids": [0, 1, 2, 3]}, "40 tokens are 2 full blocks of 16 and a part, but 4 hash ids"),
        ({**LINE, "input_length": 32}, "32 tokens are 2 full blocks of 16, but 3 hash ids"),
    ],
)
def test_a_broken_line_is_named_with_file_and_line(tmp_path: Path, wrong: object, message: str) -> None:
    path = write(tmp_path / "t.jsonl", LINE, "", wrong)
    with pytest.raises(ConfigError, match=message) as caught:
        read_trace(path, block_size=16)
    assert f"{path}:3:" in str(caught.value)


@pytest.mark.parametrize("wrong", ["not JSON", {**LINE, "prompt": "x"}, {"timestamp": 0}, [1]])
def test_a_line_of_another_format_names_the_fields_of_this_one(tmp_path: Path, wrong: object) -> None:
    with pytest.raises(ConfigError) as caught:
        read_trace(write(tmp_path / "t.jsonl", wrong))
    assert "t.jsonl:1: not a line of Mooncake's format" in str(caught.value)
    assert "timestamp, input_length, output_length, hash_ids" in str(caught.value)


def test_files_that_hold_no_trace_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no request"):
        read_trace(write(tmp_path / "empty.jsonl"))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_trace(tmp_path / "missing.jsonl")
    broken = tmp_path / "broken.jsonl.gz"
    broken.write_bytes(gzip.compress(json.dumps(LINE).encode() * 50)[:60])
    with pytest.raises(ConfigError, match="cannot be read"):
        read_trace(broken)


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
    write(path, *(line(0, n, list(range(count))) for n, count in zip(lengths, counts, strict=True)))
    assert read_trace(path).block_size == block


def test_a_block_size_nobody_can_tell_must_be_given(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", line(0, 100, [0]))
    with pytest.raises(ConfigError, match="give --block-size"):
        read_trace(path)
    assert read_trace(path, block_size=64).block_size == 64


requests = st.lists(
    st.tuples(st.integers(1, 70), st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), st.booleans()),
    min_size=2,
    max_size=15,
)


@settings(deadline=None)
@given(requests, st.integers(1, 20), st.sampled_from([4, 16]))
def test_prompts_share_the_tokens_of_shared_blocks_and_not_one_more(
    shapes: list[tuple[int, int, int, int, bool]], seed: int, block: int
) -> None:
    made = []
    for length, a, b, c, last_has_id in shapes:
        count = -(-length // block) if last_has_id else length // block
        # Chained ids, as traces have them: what a block is called depends on those before it.
        chain = [a, 10 + 4 * a + b, 100 + 16 * a + 4 * b + c]
        made.append((length, tuple((chain + [1000 + 64 * chain[2] + i for i in range(80)])[:count])))
    trace = a_trace(*made, block_size=block)
    prompts = make_prompts(trace, VOCABULARY, seed=seed)
    probe = make_probe(VOCABULARY, 33, seed=seed)
    assert [len(prompt) for prompt in prompts] == [length for length, _ in made]
    for i, (length_i, ids_i) in enumerate(made):
        assert common_prefix(prompts[i], probe) == 0
        for j, (length_j, ids_j) in enumerate(made[:i]):
            blocks = next((k for k, (x, y) in enumerate(zip(ids_i, ids_j, strict=False)) if x != y), None)
            if blocks is None:
                blocks = min(len(ids_i), len(ids_j))
            shared = min(blocks * block, length_i, length_j)
            assert common_prefix(prompts[i], prompts[j]) == shared


def test_prompts_are_a_function_of_trace_seed_and_salt() -> None:
    trace = a_trace((40, (0, 1, 2)), (40, (0, 1, 3)))
    first = [prompt.tolist() for prompt in make_prompts(trace, VOCABULARY, seed=1)]
    assert first == [prompt.tolist() for prompt in make_prompts(trace, VOCABULARY, seed=1)]
    assert first != [prompt.tolist() for prompt in make_prompts(trace, VOCABULARY, seed=2)]
    assert first != [prompt.tolist() for prompt in make_prompts(trace, VOCABULARY, seed=1, salt=9)]


def test_a_vocabulary_too_small_to_tell_prompts_apart_is_an_error() -> None:
    trace = a_trace(*((16, (i,)) for i in range(12)))
    with pytest.raises(ConfigError, match="more than 9 prompts part at one place"):
        make_prompts(trace, Vocabulary.of_size(10, "test"), seed=0)


def test_scaling_makes_smaller_blocks_and_keeps_the_sharing() -> None:
    trace = a_trace((40, (0, 1, 2)), (33, (0, 1, 3)))
    fitted, fitting = fit_trace(trace, length_scale=0.25)
    assert fitted.block_size == 4
    assert [r.num_prompt_tokens for r in fitted.requests] == [10, 8]
    assert [r.num_output_tokens for r in fitted.requests] == [1, 1]
    assert fitting.num_cut == 0
    first, second = make_prompts(fitted, VOCABULARY, seed=0)
    assert common_prefix(first, second) == 8


def test_cutting_takes_the_end_of_prompts_and_counts_what_it_cut() -> None:
    fitted, fitting = fit_trace(a_trace((40, (0, 1, 2)), (20, (0, 9))), max_len=30)
    assert fitting.num_cut == 1
    assert [r.num_prompt_tokens for r in fitted.requests] == [26, 20]
    assert fitted.requests[0].hash_ids == (0, 1)
    long_output = Trace("t", 16, (TraceRequest(0.0, 40, 1000, (0, 1, 2)),))
    assert fit_trace(long_output, max_len=30)[0].requests[0] == TraceRequest(0.0, 15, 15, (0,))


@pytest.mark.parametrize("scale", [0.3, 0.01])
def test_a_scale_that_tears_blocks_apart_is_refused(scale: float) -> None:
    with pytest.raises(ConfigError, match="--length-scale"):
        fit_trace(a_trace((40, (0, 1, 2))), length_scale=scale)


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=12), min_size=1, max_size=10), st.integers(1, 5)
)
def test_the_ideal_agrees_with_comparing_every_pair(prompts: list[list[int]], page_size: int) -> None:
    arrays = [as_token_ids(prompt) for prompt in prompts]
    for i, got in enumerate(ideal_cached_tokens(arrays, page_size)):
        # Only whole pages of an earlier prompt are cached.
        earlier = [array[: len(array) // page_size * page_size] for array in arrays[:i]]
        shared = max((common_prefix(arrays[i], array) for array in earlier), default=0)
        assert got == expected_cached_tokens(shared, len(arrays[i]), page_size)
