"""What the radix tree costs per operation, and how that grows with the pages resident in it.

A tree is filled to its size, then every round matches a prompt, inserts it and evicts as many pages as it
added, so that the size stays the same. Three trees:

  long    70,000-token prompts, every second one sharing its first half with an earlier one
  bushy   512-token prompts: one of 64 system prompts of 256 tokens, then 256 tokens of their own
  deep    conversations that grow by 128 tokens a turn to 8,192, one node a turn

The sizes take turns within each repeat, so that a slow moment of the machine falls on all of them. Which
prompt comes next is drawn at random among those resident, so a large tree is not measured from a warm corner.
Ceilings: one compare and one copy of 70,000 tokens, from memory that is not in the processor's cache.

    python benchmarks/bench_tree.py --json benchmarks/results/tree.json
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

from _common import Summary, card, parser, print_card, print_table, rounded, summary, write_json
from prefixlab.cache.config import CacheConfig
from prefixlab.cache.eviction import lru
from prefixlab.cache.manager import CacheManager
from prefixlab.cache.pages import PageAllocator
from prefixlab.cache.radix import RadixCache
from prefixlab.core.batch import IntArray
from prefixlab.core.block_hash import PUBLIC, TokenIds
from prefixlab.core.request import Request
from prefixlab.core.sampling_params import SamplingParams

PAGE_SIZE = 16
LONG = 70_000
VOCAB_SIZE = 150_000
OPERATIONS = ("match", "insert", "evict", "all three")

T = TypeVar("T")

Workload = Callable[[np.random.Generator, int], Iterator[tuple[str, TokenIds]]]
"""(random numbers, resident pages) → endless (label, prompt)."""

Samples = dict[tuple[str, str], list[float]]
"""(label, operation) → microseconds."""


def long_prompts(rng: np.random.Generator, num_resident_pages: int) -> Iterator[tuple[str, TokenIds]]:
    num_pages_a_pair = 3 * LONG // 2 // PAGE_SIZE
    earlier: deque[TokenIds] = deque(maxlen=max(1, num_resident_pages // num_pages_a_pair // 2))
    while True:
        prompt = rng.integers(0, VOCAB_SIZE, LONG, dtype=np.int32)
        yield "long, new", prompt
        earlier.append(prompt)
        half = earlier[rng.integers(len(earlier))][: LONG // 2]
        rest = rng.integers(0, VOCAB_SIZE, LONG - len(half), dtype=np.int32)
        yield "long, half shared", np.concatenate((half, rest))


def bushy_prompts(rng: np.random.Generator, num_resident_pages: int) -> Iterator[tuple[str, TokenIds]]:
    system_prompts = rng.integers(0, VOCAB_SIZE, (64, 256), dtype=np.int32)
    while True:
        own = rng.integers(0, VOCAB_SIZE, 256, dtype=np.int32)
        yield "bushy, 512 tokens", np.concatenate((system_prompts[rng.integers(64)], own))


def deep_prompts(rng: np.random.Generator, num_resident_pages: int) -> Iterator[tuple[str, TokenIds]]:
    turn, longest = 128, 8192
    num_sessions = max(2, num_resident_pages * PAGE_SIZE // longest)
    sessions = [rng.integers(0, VOCAB_SIZE, longest, dtype=np.int32) for _ in range(num_sessions)]
    lengths = rng.integers(0, longest // turn, num_sessions) * turn
    while True:
        i = int(rng.integers(num_sessions))
        if lengths[i] == longest:
            sessions[i] = rng.integers(0, VOCAB_SIZE, longest, dtype=np.int32)
            lengths[i] = 0
        lengths[i] += turn
        yield "deep, 128 tokens a turn", sessions[i][: lengths[i]]


WORKLOADS: tuple[Workload, ...] = (long_prompts, bushy_prompts, deep_prompts)


class Tree:
    """A tree kept at one size, and the workload that goes through it."""

    def __init__(self, workload: Workload, num_resident_pages: int, seed: int) -> None:
        self.num_resident_pages = num_resident_pages
        self._allocator = PageAllocator(num_resident_pages + 2 * LONG // PAGE_SIZE)
        self._cache = RadixCache(self._allocator, PAGE_SIZE, lru)
        self._prompts = workload(np.random.default_rng(seed), num_resident_pages)
        while self._cache.num_evictable_pages < num_resident_pages:
            self.round(defaultdict(list))
        for _ in range(20):
            self.round(defaultdict(list))

    def round(self, samples: Samples) -> None:
        """One prompt through the tree, as a request that computes what did not match would do it."""
        label, tokens = next(self._prompts)
        cache, allocator = self._cache, self._allocator

        match, match_us = timed(lambda: cache.match(tokens, PUBLIC))
        new_pages = allocator.alloc(len(tokens) // PAGE_SIZE - len(match.pages))
        pages: IntArray = np.concatenate((match.pages, new_pages))
        _, insert_us = timed(lambda: cache.insert(tokens, pages, PUBLIC))
        allocator.free(new_pages)
        num_excess_pages = max(0, cache.num_evictable_pages - self.num_resident_pages)
        _, evict_us = timed(lambda: cache.evict(num_excess_pages))

        all_us = (match_us, insert_us, evict_us, match_us + insert_us + evict_us)
        for operation, us in zip(OPERATIONS, all_us, strict=True):
            samples[label, operation].append(us)


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """What `call` returns, and how many microseconds it took."""
    start = time.perf_counter_ns()
    result = call()
    return result, (time.perf_counter_ns() - start) / 1000


def measure(workload: Workload, sizes: list[int], repeats: int, rounds: int, seed: int) -> dict[int, Samples]:
    trees = [Tree(workload, size, seed) for size in sizes]
    samples: dict[int, Samples] = {size: defaultdict(list) for size in sizes}
    for _ in range(repeats):
        for tree in trees:
            for _ in range(rounds):
                tree.round(samples[tree.num_resident_pages])
    return samples


def ceilings(repeats: int) -> dict[str, Summary]:
    """The least a tree must do for 70,000 tokens, over 128 MB of them, so that they come from memory."""
    rng = np.random.default_rng(0)
    pool = rng.integers(0, VOCAB_SIZE, (480, LONG), dtype=np.int32)
    same = pool.copy()
    target = np.empty(LONG, dtype=np.int32)
    compare, copy = [], []
    for i in range(repeats):
        a, b, c = pool[i % 480], same[i % 480], pool[(i + 240) % 480]
        compare.append(timed(lambda a=a, b=b: (a != b).argmax())[1])
        copy.append(timed(lambda c=c: np.copyto(target, c))[1])
    return {"compare 70,000 tokens": summary(compare), "copy 70,000 tokens": summary(copy)}


def decode_and_gate(repeats: int) -> dict[str, Summary]:
    """What every decode step and every lookup pays: pages for 256 rows, and the gate of the forced miss."""
    manager = CacheManager(CacheConfig(page_size=1), num_pages=600_000, max_rows=256, max_tokens_per_row=2200)
    rows, needs_page = np.arange(256, dtype=np.int32), np.ones(256, dtype=np.bool_)
    request = Request("r", np.arange(100, dtype=np.int32), SamplingParams())
    match = manager.lookup(request, touch=True)
    grow, gate = [], []
    for _ in range(min(repeats, 2000)):
        grow.append(timed(lambda: manager.grow_rows(rows, needs_page))[1])
        gate.append(timed(lambda: [manager._gate(request, match) for _ in range(100)])[1] / 100)
    return {"a page for each of 256 rows": summary(grow), "the gate, when no miss is forced": summary(gate)}


def main() -> None:
    options = parser(__doc__)
    options.add_argument(
        "--sizes", default="10000,100000,1000000", help="resident pages (default: %(default)s)"
    )
    options.add_argument("--repeats", type=int, default=20, help="turns of all sizes (default: %(default)s)")
    options.add_argument("--rounds", type=int, default=50, help="prompts per turn (default: %(default)s)")
    options.add_argument("--seed", type=int, default=42)
    args = options.parse_args()
    sizes = [int(size) for size in args.sizes.split(",")]

    facts = card("src/prefixlab/cache", "src/prefixlab/core", "benchmarks/bench_tree.py")
    print_card(facts)
    print(f"microseconds, median (p10 … p90), lru, page size {PAGE_SIZE}, seed {args.seed}\n")

    rows: list[dict[str, Any]] = []
    growth: dict[str, float] = {}
    for workload in WORKLOADS:
        samples = measure(workload, sizes, args.repeats, args.rounds, args.seed)
        table = []
        for label, operation in sorted(samples[sizes[0]], key=lambda key: (key[0], OPERATIONS.index(key[1]))):
            by_size = {size: summary(samples[size][label, operation]) for size in sizes}
            growth[f"{label}: {operation}"] = rounded(by_size[sizes[-1]].median / by_size[sizes[0]].median)
            rows += [
                {"workload": label, "operation": operation, "resident_pages": size, "us": by_size[size]}
                for size in sizes
            ]
            shown = growth[f"{label}: {operation}"]
            table.append([f"{label}: {operation}", *by_size.values(), f"x {shown:.2f}"])
        headers = ["operation", *(f"{size:,} pages" for size in sizes), "growth"]
        print_table(headers, table)

    others = {**ceilings(args.repeats * args.rounds), **decode_and_gate(args.repeats * args.rounds)}
    print_table(["ceilings and fixed costs", "us"], list(others.items()))
    document = {"card": facts, "seed": args.seed, "page_size": PAGE_SIZE, "rows": rows, "growth": growth}
    write_json(args.json, {**document, "ceilings_and_fixed_costs_us": others})


if __name__ == "__main__":
    main()
