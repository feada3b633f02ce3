from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixlab.cache.pages import PageAllocator
from prefixlab.core.batch import IntArray
from prefixlab.core.errors import CacheError


def pages(*numbers: int) -> IntArray:
    return np.array(numbers, dtype=np.int32)


def test_all_pages_are_free_at_first_and_go_out_in_order() -> None:
    allocator = PageAllocator(4)
    assert allocator.num_free_pages == 4
    taken = allocator.alloc(3)
    assert taken.tolist() == [0, 1, 2]
    assert taken.dtype == np.int32
    assert allocator.num_free_pages == 1
    assert allocator.references.tolist() == [1, 1, 1, 0]


def test_pages_given_back_last_go_out_first() -> None:
    allocator = PageAllocator(5)
    allocator.free(allocator.alloc(5)[1:3])
    assert allocator.alloc(2).tolist() == [1, 2]


def test_no_pages_is_a_valid_number_of_pages() -> None:
    allocator = PageAllocator(2)
    assert allocator.alloc(0).tolist() == []
    allocator.free(pages())
    allocator.share(pages())
    allocator.check()


def test_a_page_is_free_when_its_last_owner_lets_go() -> None:
    allocator = PageAllocator(3)
    taken = allocator.alloc(2)
    allocator.share(taken[:1])
    allocator.free(taken)
    assert allocator.references.tolist() == [1, 0, 0]
    allocator.free(taken[:1])
    assert allocator.num_free_pages == 3


def test_more_pages_than_are_free_is_an_error_and_takes_none() -> None:
    allocator = PageAllocator(3)
    allocator.alloc(2)
    with pytest.raises(CacheError, match="2 pages asked for, 1 free"):
        allocator.alloc(2)
    assert allocator.num_free_pages == 1


def test_an_allocator_without_pages_is_refused() -> None:
    with pytest.raises(CacheError):
        PageAllocator(0)


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(pages(0, 3), id="free already"),
        pytest.param(pages(1, 0, 1), id="named twice"),
        pytest.param(pages(2, 2), id="named twice, though it has two owners"),
        pytest.param(pages(0, 4), id="beyond the last"),
        pytest.param(pages(-2), id="negative"),
    ],
)
@pytest.mark.parametrize("verb", ["free", "share"])
def test_a_wrong_page_is_an_error_that_changes_nothing(verb: str, wrong: IntArray) -> None:
    allocator = PageAllocator(4)
    taken = allocator.alloc(3)
    allocator.share(taken[2:])
    before = allocator.references
    with pytest.raises(CacheError):
        getattr(allocator, verb)(wrong)
    assert np.array_equal(allocator.references, before)
    assert allocator.num_free_pages == 1
    allocator.check()


def test_check_finds_a_leak_and_a_page_that_is_free_twice() -> None:
    leaking = PageAllocator(3)
    leaking._num_free = 2
    with pytest.raises(AssertionError, match="disagree"):
        leaking.check()
    doubled = PageAllocator(3)
    doubled._free[0] = doubled._free[1]
    with pytest.raises(AssertionError, match="twice"):
        doubled.check()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(["alloc", "share", "free"]), st.integers(0, 9)), max_size=40))
def test_counts_agree_with_a_list_of_owners(steps: list[tuple[str, int]]) -> None:
    num_pages = 12
    allocator = PageAllocator(num_pages)
    owned: list[list[int]] = []  # each owner's pages
    for verb, number in steps:
        if verb == "alloc" and number <= allocator.num_free_pages:
            owned.append(allocator.alloc(number).tolist())
        elif verb == "share" and owned:
            owned.append(list(owned[number % len(owned)]))
            allocator.share(pages(*owned[-1]))
        elif verb == "free" and owned:
            allocator.free(pages(*owned.pop(number % len(owned))))
        counts = np.bincount([page for some in owned for page in some], minlength=num_pages)
        assert allocator.references.tolist() == counts.tolist()
        assert allocator.num_free_pages == (counts == 0).sum()
        allocator.check()
