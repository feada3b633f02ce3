from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefixlab.core.batch import Batch
from prefixlab.core.errors import ConfigError
from prefixlab.core.request import Request
from prefixlab.core.sampling_params import SamplingParams
from prefixlab.core.step_time.built_in import H200_8B, PROFILES
from prefixlab.core.step_time.model import LinearStepTime
from prefixlab.core.step_time.shape import StepShape


def batch_of(rows: Sequence[tuple[int, int]], num_prefill_rows: int) -> Batch:
    """A batch of (tokens before, tokens now); of a page table nothing is asked."""
    count = len(rows)
    lengths = [now for _, now in rows]
    prompt = np.zeros(1, dtype=np.int32)
    return Batch(
        requests=[Request(str(i), prompt, SamplingParams()) for i in range(count)],
        rows=np.arange(count, dtype=np.int32),
        starts=np.array([before for before, _ in rows], dtype=np.int32),
        lengths=np.array(lengths, dtype=np.int32),
        samples=np.ones(count, dtype=np.bool_),
        input_ids=np.zeros(sum(lengths), dtype=np.int32),
        page_table=np.zeros((count, 1), dtype=np.int32),
        page_size=16,
        num_prefill_rows=num_prefill_rows,
    )


def test_a_shape_counts_what_a_batch_computes_and_reads() -> None:
    batch = batch_of([(0, 4), (10, 2), (7, 1), (99, 1)], num_prefill_rows=2)
    assert StepShape.of(batch) == StepShape(
        num_prefill_rows=2,
        num_prefill_tokens=6,
        num_prefill_context_tokens=10,
        num_prefill_pairs=(1 + 2 + 3 + 4) + (11 + 12),
        num_decode_rows=2,
        num_decode_context_tokens=8 + 100,
    )


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 50)), min_size=1, max_size=5))
def test_pairs_are_those_one_would_count(rows: list[tuple[int, int]]) -> None:
    counted = sum(position + 1 for before, now in rows for position in range(before, before + now))
    assert StepShape.of(batch_of(rows, len(rows))).num_prefill_pairs == counted


def test_chunks_of_a_prompt_attend_to_as_many_pairs_as_the_whole() -> None:
    chunks = [StepShape.of_prefill(2048, done) for done in range(0, 65536, 2048)]
    assert sum(one.num_prefill_pairs for one in chunks) == StepShape.of_prefill(65536).num_prefill_pairs


def test_a_long_context_does_not_overflow() -> None:
    [pairs] = [StepShape.of(batch_of([(0, 131_072)], 1)).num_prefill_pairs]
    assert pairs == 131_072 * 131_073 // 2


def test_the_linear_model_adds_each_kind_of_work_at_its_price() -> None:
    shape = StepShape(2, 6, 10, 33, 2, 108)
    model = LinearStepTime(
        fixed_s=1.0, prefill_token_s=10.0, prefill_attention_s=100.0, decode_row_s=1e3, decode_context_s=1e4
    )
    assert model.duration_s(shape) == 1 + 60 + 3300 + 2000 + 1_080_000
    assert LinearStepTime().duration_s(shape) == 0


@pytest.mark.parametrize("value", [-1e-9, math.nan, math.inf])
@pytest.mark.parametrize("name", LinearStepTime.__struct_fields__)
def test_a_coefficient_that_is_no_time_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=name):
        LinearStepTime(**{name: value})


def test_the_default_resembles_one_gpu_with_an_8b_model() -> None:
    model = PROFILES[H200_8B].step_time
    decode_s = model.duration_s(StepShape(num_decode_rows=64, num_decode_context_tokens=64 * 2048))
    assert 0.008 < decode_s < 0.015  # 64 requests of 2,048 tokens each get some 6,000 tokens a second
    prefill_s = model.duration_s(StepShape.of_prefill(8192))
    assert 0.15 < prefill_s < 0.25
    assert model.duration_s(StepShape.of_prefill(8192 - 7360, 7360)) < 0.2 * prefill_s  # 90 % cached
