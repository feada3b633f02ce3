"""Orders of the queue and choices of who gives way, as tables: requests in, ids out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from prefixlab.core.block_hash import PUBLIC, Namespace
from prefixlab.core.request import Request
from prefixlab.scheduler.config import POLICIES, SchedulerConfig
from prefixlab.scheduler.policies import (
    CACHE_AWARE_QUEUE_LIMIT,
    first_to_retract,
    order_waiting,
    outranked_by,
)
from tests.scheduler.harness import ids_of, make_request

PAGE_SIZE = 2


def order(
    policy: str,
    waiting: list[Request],
    matched: dict[str, int] | None = None,
    pass_number: int = 1,
    **settings: object,
) -> str:
    """The ids in order, in one word: every id is one letter."""
    ordered = order_waiting(
        waiting,
        SchedulerConfig(schedule_policy=policy, **settings),  # type: ignore[arg-type]
        matched=lambda request: (matched or {}).get(request.request_id, 0),
        page_size=PAGE_SIZE,
        pass_number=pass_number,
    )
    return "".join(ids_of(ordered))


def requests(**fields_by_id: dict[str, object]) -> list[Request]:
    return [make_request(request_id, 8, **fields) for request_id, fields in fields_by_id.items()]  # type: ignore[arg-type]


def test_fcfs_serves_the_oldest_first() -> None:
    assert order("fcfs", requests(a={}, b={}, c={})) == "abc"


def test_lof_serves_the_longest_output_first_and_equals_by_age() -> None:
    waiting = requests(
        a={"max_new_tokens": 5}, b={"max_new_tokens": 9}, c={"max_new_tokens": 9}, d={"max_new_tokens": 7}
    )
    assert order("lof", waiting) == "bcda"


@pytest.mark.parametrize(("low_first", "expected"), [(False, "bdac"), (True, "cabd")])
def test_priority_serves_the_higher_value_first_or_the_lower_when_told(
    low_first: bool, expected: str
) -> None:
    waiting = requests(a={"priority": 0}, b={"priority": 5}, c={"priority": -5}, d={"priority": 5})
    assert order("priority", waiting, schedule_low_priority_values_first=low_first) == expected


def test_lpm_serves_the_longest_cached_prefix_first_and_equals_by_age() -> None:
    waiting = requests(a={}, b={}, c={}, d={})
    assert order("lpm", waiting, {"b": 4, "c": 6, "d": 4}) == "cbda"


def test_random_is_the_same_for_the_same_seed_and_differs_from_pass_to_pass() -> None:
    waiting = requests(**{letter: {} for letter in "abcdefgh"})
    first = order("random", waiting, schedule_seed=3, pass_number=1)
    assert first == order("random", waiting, schedule_seed=3, pass_number=1)
    assert first != order("random", waiting, schedule_seed=3, pass_number=2)
    assert first != order("random", waiting, schedule_seed=4, pass_number=1)


def prompts(**tokens_by_id: list[int]) -> list[Request]:
    return [make_request(request_id, tokens) for request_id, tokens in tokens_by_id.items()]


def test_dfs_weight_serves_the_branch_most_requests_share_first_and_keeps_branches_together() -> None:
    waiting = prompts(
        a=[9, 9, 0, 0],
        b=[1, 1, 2, 2, 0],
        c=[7, 7, 7, 7, 0],
        d=[1, 1, 3, 3, 0],
        e=[1, 1, 3, 3, 5, 5, 0],
        f=[7, 7, 8, 8, 0],
        g=[1, 1, 0],
    )
    cached = {"a": 0, "b": 4, "c": 4, "d": 4, "e": 6, "f": 4, "g": 2}
    # Under [1 1] wait four, and there [3 3] has two, the deeper of them first; g ends where they part.
    assert order("dfs-weight", waiting, cached) == "edbg" + "cf" + "a"


def test_dfs_weight_tells_branches_apart_by_page_not_by_token() -> None:
    waiting = prompts(a=[1, 1, 5, 6, 0], b=[1, 1, 7, 7, 0], c=[1, 1, 5, 8, 0], d=[1, 1, 7, 7, 1])
    cached = dict.fromkeys("abcd", 4)
    # a and c share a token of their second page but not the page: two branches of one, after the one of two.
    assert order("dfs-weight", waiting, cached) == "bdac"


def test_dfs_weight_keeps_namespaces_apart() -> None:
    waiting = [
        make_request("a", [1, 1, 0], namespace=Namespace("x")),
        make_request("b", [1, 1, 1]),
        make_request("c", [1, 1, 2]),
        make_request("d", [1, 1, 3], namespace=Namespace("x")),
        make_request("e", [1, 1, 4]),
    ]
    assert order("dfs-weight", waiting, dict.fromkeys("abcde", 2)) == "bcead"


@pytest.mark.parametrize("policy", ["lpm", "dfs-weight"])
def test_beyond_the_limit_cache_aware_policies_are_first_come_first_served_and_look_nobody_up(
    policy: str,
) -> None:
    waiting = [make_request(str(i), 4) for i in range(CACHE_AWARE_QUEUE_LIMIT + 1)]

    def matched(request: Request) -> int:
        raise AssertionError("looked up")

    ordered = order_waiting(
        waiting,
        SchedulerConfig(schedule_policy=policy),
        matched=matched,
        page_size=PAGE_SIZE,
        pass_number=1,
    )
    assert list(ordered) == waiting


@given(
    prompts_=st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=10), max_size=12),
    namespaces=st.lists(st.sampled_from([PUBLIC, Namespace("x"), Namespace(None, "x")]), min_size=12),
    policy=st.sampled_from(POLICIES),
    page_size=st.sampled_from([1, 2, 3]),
)
@hypothesis_settings(deadline=None)
def test_every_policy_serves_everybody_once(
    prompts_: list[list[int]], namespaces: list[Namespace], policy: str, page_size: int
) -> None:
    waiting = [
        make_request(str(i), prompt, namespace=namespaces[i], priority=len(prompt))
        for i, prompt in enumerate(prompts_)
    ]
    ordered = order_waiting(
        waiting,
        SchedulerConfig(schedule_policy=policy),
        matched=lambda request: (request.num_prompt_tokens - 1) // page_size * page_size,
        page_size=page_size,
        pass_number=1,
    )
    assert sorted(ids_of(ordered)) == sorted(ids_of(waiting))


@given(
    branches=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=12),
    page_size=st.sampled_from([1, 2]),
)
@hypothesis_settings(deadline=None)
def test_dfs_weight_agrees_with_a_walk_of_the_tree(branches: list[list[int]], page_size: int) -> None:
    """The slow twin builds the tree of cached pages and walks it."""
    waiting = [
        make_request(str(i), [token for page in pages for token in [page] * page_size] + [9])
        for i, pages in enumerate(branches)
    ]
    by_path: dict[tuple[int, ...], list[int]] = {}
    for i, pages in enumerate(branches):
        by_path.setdefault(tuple(pages), []).append(i)

    def below(path: tuple[int, ...]) -> list[int]:
        return sorted(i for end, ids in by_path.items() if end[: len(path)] == path for i in ids)

    def walk(path: tuple[int, ...]) -> list[int]:
        children = [(*path, page) for page in range(3) if below((*path, page))]
        children.sort(key=lambda child: (-len(below(child)), below(child)[0]))
        return [i for child in children for i in walk(child)] + by_path.get(path, [])

    ordered = order_waiting(
        waiting,
        SchedulerConfig(schedule_policy="dfs-weight"),
        matched=lambda request: request.num_prompt_tokens - 1,
        page_size=page_size,
        pass_number=1,
    )
    assert ids_of(ordered) == [str(i) for i in walk(())]


# Who gives way. ----------------------------------------------------------------------------------------


def running(request_id: str, num_prompt: int, num_output: int, priority: int = 0) -> Request:
    request = make_request(request_id, num_prompt, 100, priority=priority)
    request.output_token_ids = [0] * num_output
    return request


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([("a", 9, 3), ("b", 5, 2), ("c", 5, 4)], "b"),  # fewest outputs
        ([("a", 5, 2), ("b", 9, 2), ("c", 7, 2)], "b"),  # then the longest prompt
        ([("a", 5, 2), ("b", 5, 2), ("c", 5, 3)], "b"),  # then the last to come
        ([("a", 5, 2)], "a"),
    ],
)
def test_page_pressure_sends_back_fewest_outputs_then_longest_prompt_then_the_last(
    rows: list[tuple[str, int, int]], expected: str
) -> None:
    assert first_to_retract([running(*row) for row in rows], SchedulerConfig()).request_id == expected


def test_page_pressure_sends_back_the_least_urgent_under_the_priority_policy_only() -> None:
    rows = [running("a", 5, 9, priority=0), running("b", 5, 1, priority=5)]
    assert first_to_retract(rows, SchedulerConfig(schedule_policy="priority")).request_id == "a"
    assert first_to_retract(rows, SchedulerConfig(schedule_policy="lof")).request_id == "b"


@pytest.mark.parametrize(
    ("priority", "threshold", "low_first", "expected"),
    [
        (10, 10, False, ""),  # more than the threshold, not as much
        (11, 10, False, "c"),
        (16, 10, False, "cba"),
        (1, 0, False, "c"),
        (-6, 10, True, "a"),
        (5, 10, True, ""),
    ],
)
def test_a_request_outranks_those_less_urgent_by_more_than_the_threshold(
    priority: int, threshold: int, low_first: bool, expected: str
) -> None:
    rows = [running("a", 5, 3, priority=5), running("b", 5, 2, priority=1), running("c", 5, 9)]
    config = SchedulerConfig(
        schedule_policy="priority",
        priority_preemption_threshold=threshold,
        schedule_low_priority_values_first=low_first,
    )
    assert "".join(ids_of(outranked_by(make_request("z", 5, priority=priority), rows, config))) == expected
