"""What a workload expects of a cache is what the real scheduler and the real cache do, request by request."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixlab.bench.config.sharing import GspConfig
from prefixlab.bench.workloads.expected import ExpectedHits
from prefixlab.bench.workloads.generators.sharing import generated_shared_prefix_workload
from prefixlab.bench.workloads.prompts import make_contents
from prefixlab.bench.workloads.sketch import Sketches
from prefixlab.bench.workloads.tokens import Vocabulary
from prefixlab.bench.workloads.wording import ChatWording, IdWording, Wording
from prefixlab.core.request import Request
from prefixlab.core.sampling_params import SamplingParams
from prefixlab.core.text.byte_tokenizer import ByteTokenizer
from tests.bench.workloads.random_sketches import any_sketches
from tests.scheduler.harness import VOCAB_SIZE, World

# What the fake runner answers stands in no prompt, unless a session says so.
IDS = IdWording(Vocabulary(np.arange(2 * VOCAB_SIZE, 6 * VOCAB_SIZE, dtype=np.int32), "for the test"))


def served_by_the_real_cache(
    sketches: Sketches,
    wording: Wording,
    *,
    page_size: int,
    num_pages: int,
    checked: bool = True,
    chunk: int = -1,
) -> list[int]:
    """Cached tokens of each request, one after another."""
    longest = int((sketches.prompt_tokens + sketches.output_tokens).max())
    world = World(
        page_size=page_size,
        num_pages=num_pages,
        max_model_len=longest + 1,
        checked=checked,
        chunked_prefill_size=chunk,
        max_prefill_tokens=longest + page_size,
    )
    said: list[Sequence[int]] = []
    served = []
    for row, content in enumerate(make_contents(sketches, wording, 1)):
        prompt = content.tolist()
        if sketches.continues is not None and sketches.after is not None and sketches.continues[row]:
            prompt = [*said[sketches.after[row]], *prompt]
        else:
            prompt = wording.prompt(content).token_ids.tolist()
        tokens = np.array(prompt, np.int32)
        outputs = int(sketches.output_tokens[row])
        request = Request(str(row), tokens, SamplingParams(max_new_tokens=outputs, ignore_eos=True))
        assert len(tokens) == sketches.prompt_tokens[row]
        world.add(request)
        world.run()
        said.append(request.token_ids().tolist())
        assert request.num_cached_tokens is not None
        served.append(request.num_cached_tokens)
    return served


@settings(max_examples=150, deadline=None)
@given(
    sketches=any_sketches(sessions=True),
    page_size=st.sampled_from([1, 2, 3, 4, 8, 16]),
    spare_pages=st.integers(0, 20),
    chunk=st.sampled_from([-1, 16]),
)
def test_a_small_cache_serves_what_is_expected_of_it(
    sketches: Sketches, page_size: int, spare_pages: int, chunk: int
) -> None:
    longest = int((sketches.prompt_tokens + sketches.output_tokens).max())
    num_pages = -(-longest // page_size) + spare_pages
    expected = ExpectedHits(page_size, num_pages * page_size).of(sketches, IDS)
    real = served_by_the_real_cache(sketches, IDS, page_size=page_size, num_pages=num_pages, chunk=chunk)
    assert expected.tolist() == real


@settings(max_examples=60, deadline=None)
@given(sketches=any_sketches(sessions=True), page_size=st.sampled_from([1, 2, 3, 16]))
def test_a_cache_with_room_for_all_serves_what_one_that_forgets_nothing_does(
    sketches: Sketches, page_size: int
) -> None:
    unlimited = ExpectedHits(page_size).of(sketches, IDS).tolist()
    assert ExpectedHits(page_size, 1_000_000).of(sketches, IDS).tolist() == unlimited
    num_pages = int((sketches.prompt_tokens + sketches.output_tokens).sum())
    assert served_by_the_real_cache(sketches, IDS, page_size=page_size, num_pages=num_pages) == unlimited


@settings(max_examples=60, deadline=None)
@given(
    sketches=any_sketches(low=40, high=60, max_output=5),
    page_size=st.sampled_from([1, 5, 16]),
    spare_pages=st.integers(0, 40),
)
def test_so_it_does_inside_a_chat_template(sketches: Sketches, page_size: int, spare_pages: int) -> None:
    longest = int((sketches.prompt_tokens + sketches.output_tokens).max())
    num_pages = -(-longest // page_size) + spare_pages
    expected = ExpectedHits(page_size, num_pages * page_size).of(sketches, CHAT)
    assert expected.tolist() == served_by_the_real_cache(
        sketches, CHAT, page_size=page_size, num_pages=num_pages
    )


CHAT = ChatWording(ByteTokenizer())


@pytest.mark.parametrize("page_size", [1, 16, 64])
def test_generated_shared_prefix_of_sglangs_sizes_hits_882353_of_a_million(page_size: int) -> None:
    workload = generated_shared_prefix_workload(GspConfig(gsp_output_len=1), None, 1)
    assert workload.sketches is not None and len(workload) == 64 * 16
    expected = ExpectedHits(page_size).of(workload.sketches, IDS)
    assert expected.sum() / workload.sketches.prompt_tokens.sum() == pytest.approx(0.882353, abs=5e-7)
    num_pages = (64 * (2048 + 16 * 128) + 4096) // page_size
    real = served_by_the_real_cache(
        workload.sketches, IDS, page_size=page_size, num_pages=num_pages, checked=False
    )
    assert real == expected.tolist()
