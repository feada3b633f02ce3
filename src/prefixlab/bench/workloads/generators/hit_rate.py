"""Prompts of which a cache of given size serves a given part, in the order in which they are sent.

Owns which prompts are new, which go back to an earlier one, and how far. It runs the model of the cache
(`expected.py`) along and goes back to anything that is still there, however long ago it was sent: a smaller
cache serves less.

Invariant: the rate that the notes state is what `ExpectedHits` says of the finished workload.
"""

from __future__ import annotations

import bisect
import itertools
from dataclasses import dataclass

import numpy as np

from prefixlab.bench.config.dataset import DEFAULT_NUM_PROMPTS
from prefixlab.bench.config.sharing import HitRateConfig
from prefixlab.bench.workloads.draws import Draws
from prefixlab.bench.workloads.expected import Extent, LruPages
from prefixlab.bench.workloads.sketch import FloatArray, IntArray, Sketches
from prefixlab.bench.workloads.workload import Workload
from prefixlab.core.errors import ConfigError

MAX_STEPS = 512
"""In which prompts are shared: pages, or a few pages at once where a prompt has more of them."""
NUM_TRIES = 8
"""To find an earlier prompt of which enough is still cached, before the last one is taken."""


@dataclass(frozen=True, slots=True)
class CacheSize:
    """The cache that is aimed for. `capacity_tokens` None: it forgets nothing."""

    page_size: int
    capacity_tokens: int | None

    def __str__(self) -> str:
        held = (
            "that forgets nothing" if self.capacity_tokens is None else f"of {self.capacity_tokens:,} tokens"
        )
        return f"a cache {held}, {self.page_size} to a page"


def hit_rate_workload(
    config: HitRateConfig, cache: CacheSize, count: int | None, *key: int, room: int = 0
) -> Workload:
    """Prompts of one length. Some are new, so that the others, which make up for them, go back to many.

    Args:
        key: whole numbers ≥ 0 that draws depend on.
        room: tokens at both ends of a prompt that are left whole, for a chat template.

    Raises:
        ConfigError: the cache does not hold one request.
    """
    count = DEFAULT_NUM_PROMPTS if count is None else count
    length, outputs, rate = config.hit_rate_len, config.hit_rate_output_len, config.hit_rate
    if cache.capacity_tokens is not None:
        _check_fits(length + outputs - 1, cache)
    revisits = _Revisits(length, outputs, cache, room)
    draws = Draws(*key).uniform((1 + NUM_TRIES) * count).reshape(count, -1)
    # The last ones leave nothing to make up for: so many as it takes at most.
    spare = revisits.most_shared - rate * length
    num_last = int(rate * length / spare) + 2 if spare > 0 else count
    served = 0
    for number in range(count):
        behind = rate * length * (number + 1) - served
        is_new = behind < revisits.most_shared * draws[number, 0] and number < count - num_last
        served += revisits.add(0 if is_new else behind, draws[number, 1:])
    note = (
        f"prompts of {length:,} tokens, new ones and ones that go back to earlier ones: hit rate {rate:.2%} "
        f"asked for, {served / (length * count):.2%} reached, one after another in {cache}; outputs of "
        f"{outputs:,}"
    )
    flags = "--hit-rate-len and --hit-rate-output-len"
    return Workload(revisits.sketches(), notes=(note,), length_flags=flags)


def _check_fits(num_tokens: int, cache: CacheSize) -> None:
    assert cache.capacity_tokens is not None
    if _ceil(num_tokens, cache.page_size) > cache.capacity_tokens // cache.page_size:
        raise ConfigError(
            f"--hit-rate-capacity {cache.capacity_tokens}: a request takes {num_tokens:,} tokens, "
            f"{cache.page_size} to a page"
        )


class _Revisits:
    """Prompts by steps: each prompt knows whose every step is, so that equal beginnings are equal."""

    def __init__(self, length: int, outputs: int, cache: CacheSize, room: int) -> None:
        page_size = cache.page_size
        readable = (length - 1) // page_size
        self._length = length
        self._outputs = outputs
        self._page_size = page_size
        self._readable = readable
        self._step_pages = max(1, _ceil(readable, MAX_STEPS))
        step_tokens = self._step_pages * page_size
        self._num_steps = max(0, min(readable // self._step_pages, (length - room) // step_tokens))
        """Steps that can be shared. Each prompt has more tokens of its own behind them."""
        self._fewest_steps = _ceil(room, step_tokens)
        self._own_pages = readable - self._num_steps * self._step_pages, length // page_size - readable
        self._answer_pages = (length + outputs - 1) // page_size - length // page_size
        self._peaks = _ceil(length, page_size), _ceil(length + outputs - 1, page_size)
        self._capacity = None if cache.capacity_tokens is None else cache.capacity_tokens // page_size
        self._cache = LruPages(self._capacity)
        self._owners: list[IntArray] = []
        self._cuts: list[set[int]] = []
        """Of each prompt, before which of its own steps others leave it."""
        self._num_new_pages: list[int] = []
        """That all prompts up to each one brought."""

    @property
    def most_shared(self) -> int:
        """Tokens of a prompt that can be served at most."""
        return self._num_steps * self._step_pages * self._page_size

    def add(self, wanted_tokens: float, draws: FloatArray) -> int:
        """One more prompt, of which about so many tokens are served, as far as can be. Returns how many are.

        Args:
            draws: shape (NUM_TRIES,), in [0, 1).
        """
        number = len(self._owners)
        steps = min(self._num_steps, max(0, round(wanted_tokens / (self._step_pages * self._page_size))))
        owners = np.full(self._num_steps, number)
        if 0 < steps < self._fewest_steps:
            steps = self._fewest_steps * round(steps / self._fewest_steps)
            steps = 0 if steps > self._num_steps else steps
        if number and steps:
            owners[:steps] = self._owners[self._choose(steps, draws)][:steps]
            self._cuts[int(owners[steps - 1])].add(steps)
        self._owners.append(owners)
        self._cuts.append(set())
        own = [(-1 - 3 * number - kind, pages) for kind, pages in enumerate(self._own_pages) if pages]
        answer = [(-3 - 3 * number, self._answer_pages)] if self._answer_pages else []
        found = self._cache.serve([*self._path(owners), *own], answer, self._readable, *self._peaks)
        before = self._num_new_pages[-1] if number else 0
        self._num_new_pages.append(before + self._peaks[1] - found)
        return found * self._page_size

    def _choose(self, steps: int, draws: FloatArray) -> int:
        """An earlier prompt of which so many steps are cached: any of those that may be."""
        number, pages = len(self._owners), steps * self._step_pages
        oldest = 0
        if self._capacity is not None:
            oldest = bisect.bisect_left(self._num_new_pages, self._num_new_pages[-1] - self._capacity)
        for earlier in (oldest + draws * (number - oldest)).astype(np.int64).tolist():
            if self._cache.peek(self._path(self._owners[earlier][:steps]), pages) == pages:
                return int(earlier)
        return number - 1

    def _path(self, owners: IntArray) -> list[Extent]:
        steps = (owners * self._num_steps + np.arange(len(owners))).tolist()
        return [(step, self._step_pages) for step in steps]

    def sketches(self) -> Sketches:
        """Each prompt in pieces, cut wherever a prompt leaves another."""
        step_tokens = self._step_pages * self._page_size
        cuts = [np.array(sorted(own), np.int64) for own in self._cuts]
        prompts = []
        for number, owners in enumerate(self._owners):
            runs = np.flatnonzero(np.diff(owners, prepend=-1)).tolist()
            bounds = {0, *runs}
            for begin, end in itertools.pairwise([*runs, self._num_steps]):
                of_owner = cuts[owners[begin]]
                bounds.update(of_owner[(begin < of_owner) & (of_owner <= end)].tolist())
            if len(owners) and owners[-1] != number:
                bounds.add(self._num_steps)
            pieces = [
                (int(owners[begin]) * self._num_steps + begin, (end - begin) * step_tokens)
                for begin, end in itertools.pairwise(sorted(bounds))
            ]
            prompts.append([*pieces, (-1 - number, self._length - max(bounds) * step_tokens)])
        return Sketches.of(prompts, [self._outputs] * len(prompts))


def _ceil(number: int, unit: int) -> int:
    return -(-number // unit)
