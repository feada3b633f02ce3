"""Deterministic mode, bit for bit: whatever the chunks, pages, neighbours and cache hits, a token's logits
are one row of numbers. Compared with torch.equal, never with a tolerance.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixlab.engine.runner import TILE_SIZE, TorchRunner
from prefixlab.engine.shapes import TINY
from prefixlab.engine.weights import dummy_weights
from tests.engine.harness import SMALL, Table, make_runner, random_tokens

DTYPES = [torch.float32, torch.bfloat16]
# Biases, an untied head, one key-value head per query head, sizes that are no multiple of anything.
ODD = replace(
    SMALL,
    architecture="llama",
    hidden_size=40,
    num_heads=3,
    num_kv_heads=3,
    head_dim=10,
    intermediate_size=52,
    vocab_size=301,
    qk_norm=False,
    qkv_bias=True,
    output_bias=True,
    tied_embeddings=False,
)
MODELS = {"small": SMALL, "odd": ODD, "tiny": replace(TINY, max_len=512, vocab_size=300, num_layers=2)}
WEIGHTS = {
    (name, dtype): dummy_weights(config, dtype, 1) for name, config in MODELS.items() for dtype in DTYPES
}


def runner_of(name: str, dtype: torch.dtype, page_size: int = 16) -> TorchRunner:
    return make_runner(
        MODELS[name],
        weights=WEIGHTS[name, dtype],
        dtype=dtype,
        page_size=page_size,
        num_pages=2048 // page_size,
        deterministic=True,
    )


def logits_at_once(name: str, dtype: torch.dtype, tokens: list[int]) -> torch.Tensor:
    runner = runner_of(name, dtype)
    return runner.logits(Table.of(runner).batch((0, 0, tokens)))


def in_chunks(
    runner: TorchRunner, table: Table, row: int, tokens: list[int], chunks: list[int]
) -> torch.Tensor:
    parts, start = [], 0
    for length in chunks:
        parts.append(runner.logits(table.batch((row, start, tokens[start : start + length]))))
        start += length
    assert start == len(tokens)
    return torch.cat(parts)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("page_size", [1, 5, 16, 64])
def test_neither_chunks_nor_pages_change_a_bit(name: str, dtype: torch.dtype, page_size: int) -> None:
    tokens = random_tokens(150, seed=1)
    expected = logits_at_once(name, dtype, tokens)
    runner = runner_of(name, dtype, page_size)
    table = Table.of(runner)
    for chunks in ([150], [7] * 21 + [3], [16, 16, 100, 18], [149, 1], [1, 149], [64, 64, 22]):
        assert torch.equal(in_chunks(runner, table, 0, tokens, chunks), expected), chunks
        table.give_back(0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MODELS)
def test_decoding_token_by_token_gives_the_bits_of_a_prefill(name: str, dtype: torch.dtype) -> None:
    tokens = random_tokens(70, seed=2)
    runner = runner_of(name, dtype)
    one_by_one = in_chunks(runner, Table.of(runner), 0, tokens, [1] * 70)
    assert torch.equal(one_by_one, logits_at_once(name, dtype, tokens))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MODELS)
def test_a_cached_prefix_gives_the_bits_of_computing_it(name: str, dtype: torch.dtype) -> None:
    shared, own = random_tokens(80, seed=3), random_tokens(45, seed=4)
    runner = runner_of(name, dtype, page_size=5)
    table = Table.of(runner)
    # The owner of the prefix came in other chunks, with another continuation, beside others.
    runner.logits(table.batch((0, 0, shared[:33]), (3, 0, random_tokens(50, seed=5))))
    runner.logits(table.batch((0, 33, shared[33:] + random_tokens(9, seed=6)), (3, 50, [7])))
    table.share(0, 1, 80)
    assert torch.equal(
        runner.logits(table.batch((1, 80, own))), logits_at_once(name, dtype, shared + own)[80:]
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MODELS)
def test_neighbours_change_nothing_even_in_the_same_tile(name: str, dtype: torch.dtype) -> None:
    """Decode rows share tiles where their positions allow; all at one position need a tile each."""
    runner = runner_of(name, dtype)
    table = Table.of(runner)
    lengths = [20, 21, 22, 37, 36, 20, 64, 90]
    prompts = [random_tokens(length, seed=10 + i) for i, length in enumerate(lengths)]
    for row, prompt in enumerate(prompts):
        runner.logits(table.batch((row, 0, prompt[:-1])))
    entries = [(row, len(prompt) - 1, prompt[-1:]) for row, prompt in enumerate(prompts)]
    together = runner.logits(table.batch(*entries))
    for row, prompt in enumerate(prompts):
        assert torch.equal(together[row], logits_at_once(name, dtype, prompt)[-1]), f"row {row}"
        assert torch.equal(together[row], runner.logits(table.batch(entries[row]))[0]), f"row {row} alone"


@settings(deadline=None, max_examples=25)
@given(data=st.data())
@pytest.mark.parametrize("dtype", DTYPES)
def test_random_mixes_of_rows_give_the_same_bits(dtype: torch.dtype, data: st.DataObject) -> None:
    """Several prompts advance by random pieces in random company, and finish together."""
    page_size = data.draw(st.sampled_from([1, 3, 16]), "page size")
    lengths = data.draw(st.lists(st.integers(1, 60), min_size=1, max_size=4), "lengths")
    pieces = st.lists(st.integers(0, 40), min_size=len(lengths), max_size=len(lengths))
    steps = data.draw(st.lists(pieces, max_size=5), "pieces of each prompt, step by step")
    prompts = [random_tokens(length, seed=100 + i) for i, length in enumerate(lengths)]
    expected = [logits_at_once("odd", dtype, prompt) for prompt in prompts]
    runner = runner_of("odd", dtype, page_size)
    table = Table.of(runner)
    progress = [0] * len(prompts)
    for step in [*steps, lengths]:
        entries = [
            (row, start, prompt[start : start + piece])
            for row, (start, prompt, piece) in enumerate(zip(progress, prompts, step, strict=True))
            if piece and start < len(prompt)
        ]
        if not entries:
            continue
        parts = runner.logits(table.batch(*entries)).split([len(tokens) for _, _, tokens in entries])
        for (row, start, tokens), part in zip(entries, parts, strict=True):
            assert torch.equal(part, expected[row][start : start + len(tokens)])
            progress[row] = start + len(tokens)


def test_a_tile_is_what_positions_are_aligned_to() -> None:
    """A prompt one token longer than its tiles: the extra token gets a tile of its own, and the same bits."""
    tokens = random_tokens(2 * TILE_SIZE + 1, seed=8)
    whole = logits_at_once("small", torch.float32, tokens)
    assert torch.equal(logits_at_once("small", torch.float32, tokens[:-1]), whole[:-1])
