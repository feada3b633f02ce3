"""Who goes first, and who gives way: the order of the waiting queue, and the choice of a running request to
send back, as pure functions.

Owns choices only. How many come in is `admission.py`.

Invariant: every order holds each waiting request exactly once, equals (but under `random`) oldest first.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from prefixlab.core.block_hash import TokenIds
from prefixlab.core.request import Request
from prefixlab.scheduler.config import SchedulerConfig

CACHE_AWARE_QUEUE_LIMIT = 128
"""Longer queues are served first come first served by the cache-aware policies: a lookup per waiting request
per step would cost more than the order gains."""

Matched = Callable[[Request], int]
"""Tokens of a waiting request that the cache holds now; looks without touching."""


def order_waiting(
    waiting: Collection[Request],
    config: SchedulerConfig,
    *,
    matched: Matched,
    page_size: int,
    pass_number: int,
) -> Iterable[Request]:
    """`waiting` (oldest first) in the order the policy serves it. See each function below."""
    policy = config.schedule_policy
    if policy in ("lpm", "dfs-weight") and len(waiting) > CACHE_AWARE_QUEUE_LIMIT:
        return waiting
    match policy:
        case "fcfs":
            return waiting
        case "lof":
            return longest_output_first(waiting)
        case "random":
            return shuffled(waiting, config.schedule_seed, pass_number)
        case "priority":
            return most_urgent_first(waiting, config.schedule_low_priority_values_first)
        case "lpm":
            return longest_prefix_first(waiting, matched)
        case "dfs-weight":
            return depth_first_by_weight(waiting, matched, page_size)
    raise AssertionError(f"the config let an unknown policy through: {policy!r}")


def longest_output_first(waiting: Iterable[Request]) -> list[Request]:
    """lof: most `max_new_tokens` first, so that the longest answers overlap with the most others."""
    return sorted(waiting, key=lambda request: -request.sampling.max_new_tokens)


def shuffled(waiting: Iterable[Request], seed: int, pass_number: int) -> list[Request]:
    """random: a fresh order for every pass, the same for the same seed and pass number."""
    requests = list(waiting)
    # Text seeds are hashed with SHA-512 by `random`: equal on every platform, unlike hash() of a tuple.
    random.Random(f"{seed}/{pass_number}").shuffle(requests)
    return requests


def urgency(request: Request, low_priority_values_first: bool) -> int:
    """Higher runs first, whichever way round the values are read."""
    return -request.priority if low_priority_values_first else request.priority


def most_urgent_first(waiting: Iterable[Request], low_priority_values_first: bool) -> list[Request]:
    """priority: highest value first, or lowest first when told so."""
    return sorted(waiting, key=lambda request: -urgency(request, low_priority_values_first))


def longest_prefix_first(waiting: Iterable[Request], matched: Matched) -> list[Request]:
    """lpm: longest cached prefix first, so that hits are taken before they are evicted.

    (Zheng et al., SGLang, arXiv 2312.07104, section 3.) A request without a prefix can be overtaken for as
    long as others with one keep coming; `queue_timeout_s` bounds that.
    """
    return sorted(waiting, key=lambda request: -matched(request))


def depth_first_by_weight(waiting: Iterable[Request], matched: Matched, page_size: int) -> list[Request]:
    """dfs-weight: depth first through the cached prefixes, the branch most waiting requests share first.

    Needs no view of the tree: where two cached prefixes part, floored to pages, is where the tree branches.
    Sorted by their tokens, the requests below one branch lie side by side. Those whose prefix ends at a
    branching point follow those that go further; what matches nothing comes last.
    """
    arrived = list(waiting)
    prefixes = [request.token_ids(matched(request)) for request in arrived]
    unmatched = [request for request, prefix in zip(arrived, prefixes, strict=True) if not len(prefix)]

    # Any order will do in which equal beginnings are neighbours and a prefix stands before its extensions.
    sort_key = [
        (str(request.namespace), prefix.tobytes()) for request, prefix in zip(arrived, prefixes, strict=True)
    ]
    sorted_ids = sorted((i for i, prefix in enumerate(prefixes) if len(prefix)), key=sort_key.__getitem__)
    places = [
        _Place(index, len(prefixes[index]), _shared_tokens(arrived, prefixes, previous, index, page_size))
        for previous, index in pairwise([-1, *sorted_ids])
    ]
    return [arrived[place.arrival] for place in _heaviest_branch_first(places, 0)] + unmatched


class _Place(NamedTuple):
    """A waiting request among those sorted by prefix."""

    arrival: int  # 0 is the oldest
    depth: int  # tokens of its prefix
    shared: int  # of these, tokens it has in common with the place before


def _heaviest_branch_first(places: Sequence[_Place], depth: int) -> list[_Place]:
    """The requests under one branching point, `depth` tokens down: every one has these in common."""
    num_ending_here = sum(place.depth == depth for place in places)  # they sort before their extensions
    deeper = places[num_ending_here:]
    starts = [i for i, place in enumerate(deeper) if i == 0 or place.shared == depth]
    branches = [deeper[start:end] for start, end in pairwise([*starts, len(deeper)])]
    branches.sort(key=lambda branch: (-len(branch), min(place.arrival for place in branch)))
    order: list[_Place] = []
    for branch in branches:
        branch_depth = min([branch[0].depth] + [place.shared for place in branch[1:]])
        order += _heaviest_branch_first(branch, branch_depth)
    return order + sorted(places[:num_ending_here])


def _shared_tokens(
    requests: Sequence[Request], prefixes: Sequence[TokenIds], left: int, right: int, page_size: int
) -> int:
    """Tokens the prefixes of two requests have in common, floored to pages; 0 if there is no left one."""
    if left < 0 or requests[left].namespace != requests[right].namespace:
        return 0
    length = min(len(prefixes[left]), len(prefixes[right]))
    differs = prefixes[left][:length] != prefixes[right][:length]
    common = int(differs.argmax()) if differs.any() else length
    return common // page_size * page_size


# Who gives way: it keeps its output tokens and is computed again from prompt and output, so all it loses is
# time; the choice keeps that time short. Of equals, the last to come is the first to go.


def first_to_retract(running: Sequence[Request], config: SchedulerConfig) -> Request:
    """Whom page pressure sends back: fewest outputs first (the least to compute again), then longest prompt
    (the most pages back). Under the priority policy only among the least urgent."""
    by_priority = config.schedule_policy == "priority"
    low_first = config.schedule_low_priority_values_first

    def key(request: Request) -> tuple[int, int, int]:
        rank = urgency(request, low_first) if by_priority else 0
        return rank, request.num_output_tokens, -request.num_prompt_tokens

    return min(reversed(running), key=key)


def outranked_by(urgent: Request, running: Sequence[Request], config: SchedulerConfig) -> list[Request]:
    """Running requests that `urgent` may push out, being less urgent by more than the threshold: least urgent
    first, then fewest outputs."""
    low_first = config.schedule_low_priority_values_first
    limit = urgency(urgent, low_first) - config.priority_preemption_threshold
    outranked = [request for request in reversed(running) if urgency(request, low_first) < limit]
    return sorted(outranked, key=lambda request: (urgency(request, low_first), request.num_output_tokens))
