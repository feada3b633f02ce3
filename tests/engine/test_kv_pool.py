"""The KV pool: bytes stay where they were put, pages travel whole, and what does not fit says so."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prefixlab.core.errors import EngineError
from prefixlab.engine import kv_pool
from prefixlab.engine.kv_pool import KVPool, choose_num_pages, free_memory_bytes, page_bytes
from tests.engine.harness import SMALL, Table, make_runner, random_tokens

DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_written_to_slots_is_read_from_them(dtype: torch.dtype) -> None:
    pool = KVPool(SMALL, num_pages=4, page_size=4, dtype=dtype)
    slots = torch.tensor([13, 2, 7])
    key, value = torch.randn(3, 2, 16).to(dtype), torch.randn(3, 2, 16).to(dtype)
    pool.write(1, slots, key, value)
    keys, values = torch.empty(4, 32, dtype=dtype), torch.empty(4, 32, dtype=dtype)
    pool.read(1, torch.tensor([7, 13, 2, 0]), keys, values)
    order = [2, 0, 1]
    assert torch.equal(keys[:3], key.flatten(1)[order])
    assert torch.equal(values[:3], value.flatten(1)[order])
    assert not keys[3].any()
    assert not pool.keys[0].any(), "another layer is untouched"


@pytest.mark.parametrize("dtype", DTYPES)
def test_pages_copied_out_and_into_other_places_serve_as_before(dtype: torch.dtype) -> None:
    """A prompt's pages go to host and come back under other numbers: the continuation is the same."""
    runner = make_runner(dtype=dtype, num_pages=16, page_size=8, deterministic=True)
    table = Table.of(runner)
    prompt, ending = random_tokens(24, 1), random_tokens(5, 2)
    runner.logits(table.batch((0, 0, prompt)))
    expected = runner.logits(table.batch((0, 24, ending)))

    data = runner.pool.copy_out(table.pages[0, :3])
    assert data.shape == (3, runner.pool.page_bytes)
    assert data.dtype == np.uint8
    for row in (0, 1):
        table.grow(row, 24)
    runner.pool.copy_in(table.pages[0, :3], np.zeros_like(data))
    runner.pool.copy_in(table.pages[1, :3], data)
    assert torch.equal(runner.logits(table.batch((1, 24, ending))), expected)
    assert np.array_equal(runner.pool.copy_out(table.pages[1, :3]), data)
    assert not torch.equal(runner.logits(table.batch((0, 24, ending))), expected)


def test_copying_in_touches_no_other_page() -> None:
    pool = KVPool(SMALL, num_pages=5, page_size=4, dtype=torch.float32)
    everything = np.arange(5, dtype=np.int32)
    generator = np.random.default_rng(0)
    filled = generator.integers(0, 255, (5, pool.page_bytes), dtype=np.uint8)
    pool.copy_in(everything, filled)
    new = generator.integers(0, 255, (2, pool.page_bytes), dtype=np.uint8)
    pool.copy_in(np.array([3, 1], dtype=np.int32), new)
    filled[[3, 1]] = new
    assert np.array_equal(pool.copy_out(everything), filled)


def test_pages_of_another_size_are_refused() -> None:
    pool = KVPool(SMALL, num_pages=2, page_size=4, dtype=torch.float32)
    with pytest.raises(EngineError, match="cannot be filled"):
        pool.copy_in(np.array([0], dtype=np.int32), np.zeros((1, pool.page_bytes // 2), dtype=np.uint8))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_page_costs_what_the_cost_model_says(dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    assert page_bytes(SMALL, 16, dtype) == 16 * SMALL.kv_bytes_per_token(name)
    assert KVPool(SMALL, 3, 16, dtype).page_bytes == page_bytes(SMALL, 16, dtype)


@pytest.mark.parametrize(
    ("num_pages", "kv_memory_bytes", "free_bytes", "expected"),
    [
        (77, 500, 10, 77),  # named outright
        (None, 5_050, 10, 50),  # a budget is taken at its word
        (None, 2_000_000, 10, 20_000),
        (None, None, 100_000, 100),  # a tenth of what is free
        (None, None, 100_000_000, 1000),  # but no more than could be of use
    ],
)
def test_how_many_pages_are_made(
    num_pages: int | None, kv_memory_bytes: int | None, free_bytes: int, expected: int
) -> None:
    assert (
        choose_num_pages(
            100,
            num_pages=num_pages,
            kv_memory_bytes=kv_memory_bytes,
            useful_pages=1000,
            free_bytes=free_bytes,
        )
        == expected
    )


def test_the_default_is_capped_on_large_machines() -> None:
    pages = choose_num_pages(
        1 << 20, num_pages=None, kv_memory_bytes=None, useful_pages=10**9, free_bytes=1 << 42
    )
    assert pages << 20 == kv_pool.DEFAULT_MEMORY_CAP_BYTES


def test_a_budget_below_one_page_says_what_a_page_needs() -> None:
    with pytest.raises(EngineError, match=r"needs 4,096 bytes and the budget is 100 "):
        choose_num_pages(4096, num_pages=None, kv_memory_bytes=100, useful_pages=9, free_bytes=5000)


def test_a_pool_beyond_free_memory_says_what_was_asked_and_what_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kv_pool, "free_memory_bytes", lambda: 1_000_000)
    with pytest.raises(
        EngineError, match=r"1,000 pages of KV need 8,192,000 bytes, and 1,000,000 bytes.*122 pages"
    ):
        KVPool(SMALL, num_pages=1000, page_size=16, dtype=torch.float32)


def test_free_memory_is_a_sensible_number() -> None:
    assert 1 << 20 < free_memory_bytes() < 1 << 50
