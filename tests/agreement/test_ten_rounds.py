"""Ten rounds of 2,048 new tokens and one of output: the arithmetic is what real scheduler and cache do."""

from __future__ import annotations

import pytest

from prefixlab.bench.config.dataset import LengthRange
from prefixlab.bench.workloads.expected import ExpectedHits
from prefixlab.bench.workloads.generators.sessions import SessionShape, ThinkTime, sketch_live
from tests.agreement.test_expected_hits import IDS, served_by_the_real_cache


@pytest.mark.parametrize(("page_size", "cached"), [(1, 92_196), (64, 92_160)])
def test_what_the_real_cache_serves_of_ten_rounds(page_size: int, cached: int) -> None:
    new, answer = LengthRange(2048, 2048), LengthRange(1, 1)
    sketches = sketch_live(SessionShape(1, 10, new, new, answer), ThinkTime(0.0))
    num_pages = 2 * 20_490 // page_size
    served = served_by_the_real_cache(
        sketches, IDS, page_size=page_size, num_pages=num_pages, checked=False, chunk=4096
    )
    assert sum(served) == cached
    assert served == ExpectedHits(page_size).of(sketches, IDS).tolist()
    assert int(sketches.prompt_tokens.sum()) == 112_685
