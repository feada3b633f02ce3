"""A trace made from a trace: as many requests as asked for; lengths, sharing and speed changed by factors.

Owns the method. What belongs together stays together: a request's path in the tree of prefixes, its own part
and its output are one row of the source and are never drawn apart, and requests that share more than nearly
all do (a *family*: the turns of one conversation, say) keep their distances in time. So at factors of 1 the
joint distribution of lengths is the source's, and so is what a cache finds. New is which family begins when:
those that begin at about the same time swap their beginnings, at random by the seed, so the rate over time
stays.

More requests than the source has: it is repeated, one copy after another in time. In each copy everything is
new but the *lasting* blocks, those that at least LASTING_SHARE of all requests begin with, such as a system
prompt. Otherwise the second copy would find the first one's conversations in the cache, and the hit rate
would grow with the length of the trace. Fewer requests: the first ones in time, at the source's rate.

Factors. Shared blocks: depth by depth, so whoever shared s blocks shares factor × s, rounded, whatever else
they hold; where a request's own total falls between two blocks, chance decides, and the mean is exact. A
request's own part and its output: to the token, chance decides on the fraction. Roots: a factor of 2.5 makes
three trees of weights 1, 1 and 0.5, and every family falls to one of them.

Invariant: a pure function of (trace, how, seed); lengths and numbers of ids agree, and times never decrease.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from prefixlab.bench.traces.fitting import think_s_of
from prefixlab.bench.traces.trace import Trace
from prefixlab.bench.workloads.sketch import FloatArray, IntArray
from prefixlab.core.config import setting
from prefixlab.core.errors import ConfigError

LASTING_SHARE, LASTING_REQUESTS = 0.01, 50
"""Blocks that so large a part of all requests, and so many, begin with are the same in every copy of the
trace; where it has sessions, those of more than one."""
FAMILIES_PER_SWAP = 30
"""About so many families, next to each other in time, swap their beginnings."""

BoolArray = npt.NDArray[np.bool_]
OnProgress = Callable[[int, int], None]
"""Requests made so far, and in all."""


@dataclass(frozen=True)
class Synthesis:
    """What to change; factors of 1 change nothing."""

    num_requests: int | None = setting(None, "requests to make (default: as many as the source has)")
    speedup: float = setting(1.0, "2 makes requests come twice as fast")
    prefix_len_multiplier: float = setting(1.0, "factor of what a prompt shares with others")
    prefix_root_multiplier: float = setting(
        1.0, "factor of the number of trees of shared prefixes, at least 1; a fraction is a smaller tree"
    )
    prompt_len_multiplier: float = setting(1.0, "factor of what a prompt shares with nobody")
    output_len_multiplier: float = setting(1.0, "factor of outputs", aliases=("--osl-multiplier",))
    min_isl: int | None = setting(None, "leave shorter prompts out")
    max_isl: int | None = setting(None, "leave longer prompts out")
    min_osl: int | None = setting(None, "make shorter outputs as long as this")
    max_osl: int | None = setting(None, "cut longer outputs to this")

    def __post_init__(self) -> None:
        for name in ("speedup", "prefix_len_multiplier", "prompt_len_multiplier", "output_len_multiplier"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ConfigError(f"{_flag(name)} must be a positive number, not {value}")
        if not 1 <= self.prefix_root_multiplier < math.inf:
            raise ConfigError(
                f"{_flag('prefix_root_multiplier')} must be at least 1, not {self.prefix_root_multiplier}"
            )
        for name in ("num_requests", "min_isl", "max_isl", "min_osl", "max_osl"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{_flag(name)} must be at least 1, not {value}")
        for kind in ("isl", "osl"):
            low, high = getattr(self, f"min_{kind}"), getattr(self, f"max_{kind}")
            if low is not None and high is not None and low > high:
                raise ConfigError(f"--min-{kind} {low} is above --max-{kind} {high}")

    def check(self, source: Trace) -> None:
        """Raises ConfigError for a factor of what the source does not say."""
        missing: dict[str, str] = {}
        if not source.has_ids:
            missing |= dict.fromkeys(("prefix_len_multiplier", "prefix_root_multiplier"), "hash ids")
        if not source.has_times and source.think_s is None:
            missing["speedup"] = "times"
        for name, what in missing.items():
            if getattr(self, name) != 1:
                raise ConfigError(f"{_flag(name)} changes nothing: {source.name} has no {what}")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def synthesize(
    source: Trace, how: Synthesis, seed: int, on_progress: OnProgress = lambda done, total: None
) -> Trace:
    """Make a trace out of `source`.

    Raises:
        ConfigError: no request is left, or the trace lacks what a factor is about.
    """
    how.check(source)
    wanted = len(source) if how.num_requests is None else how.num_requests
    tree = SharedTree.of(source)
    copies: list[_Copy] = []
    num_made = 0
    while num_made < wanted:
        copy = _Copy.of(source, tree, how, len(copies), np.random.default_rng([seed, len(copies)]))
        if not len(copy.rows):
            raise ConfigError(f"no request is left of {source.name}: see --min-isl and --max-isl")
        copies.append(copy)
        num_made += len(copy.rows)
        on_progress(min(num_made, wanted), wanted)
    return _joined(source, copies, wanted, how)


@dataclass(frozen=True, eq=False)
class SharedTree:
    """What requests of a trace share.

    Attributes:
        nodes: shape (pieces,), as in the trie of the trace's sketches.
        starts: shape (n + 1,), of each request's pieces.
        depths: shape (n,), leading pieces that other requests begin with too.
        context: shape (n,), tokens of these.
        is_lasting: shape (num_nodes,).
        next: shape (num_nodes,), the child that most requests go on to, -1 where none is shared.
        families: shape (n,), a number for each family.
    """

    nodes: IntArray
    starts: IntArray
    depths: IntArray
    context: IntArray
    is_lasting: BoolArray
    next: IntArray
    families: IntArray

    @classmethod
    def of(cls, source: Trace) -> SharedTree:
        sketches = source.sketches
        nodes, starts = sketches.trie.nodes, sketches.starts
        visits = np.bincount(nodes)
        shared = visits[nodes] > 1
        # A prefix of a prompt is at least as common as the prompt, so what is shared leads.
        depths = np.add.reduceat(shared, starts[:-1]).astype(np.int64)
        context = np.add.reduceat(np.where(shared, sketches.sizes, 0), starts[:-1])
        is_lasting = visits >= max(LASTING_REQUESTS, LASTING_SHARE * len(source))
        if source.session_ids is not None:
            is_lasting &= _in_several(nodes, starts, np.unique(source.session_ids, return_inverse=True)[1])
        num_lasting = np.add.reduceat(is_lasting[nodes], starts[:-1]).astype(np.int64)
        own = starts[1:] - 1
        first_passing = np.minimum(starts[:-1] + num_lasting, own)
        alone = num_lasting >= depths
        names = np.where(alone, visits.size + np.arange(len(source)), nodes[first_passing])
        if source.session_ids is not None:
            names = np.asarray(source.session_ids)
        families = np.unique(names, return_inverse=True)[1].astype(np.int64)
        return cls(nodes, starts, depths, context, is_lasting, _next_shared(nodes, starts, visits), families)


def _in_several(nodes: IntArray, starts: IntArray, groups: IntArray) -> BoolArray:
    """Which nodes requests of more than one group pass through."""
    of_piece = np.repeat(groups, np.diff(starts))
    least, most = (np.full(int(nodes.max()) + 1, edge, np.int64) for edge in (len(groups), -1))
    np.minimum.at(least, nodes, of_piece)
    np.maximum.at(most, nodes, of_piece)
    return most > least


def _next_shared(nodes: IntArray, starts: IntArray, visits: IntArray) -> IntArray:
    """Of each node the child with the most visits, if more than one; the earliest of equals."""
    inner = np.ones(len(nodes), np.bool_)
    inner[starts[1:] - 1] = False
    parents = nodes[:-1][inner[:-1]]
    children = nodes[1:][inner[:-1]]
    pairs = np.unique(np.stack([parents, children]), axis=1) if len(parents) else np.empty((2, 0), np.int64)
    pairs = pairs[:, visits[pairs[1]] > 1]
    order = np.lexsort((-pairs[1], visits[pairs[1]]))  # the last one written wins
    found = np.full(len(visits), -1, np.int64)
    found[pairs[0][order]] = pairs[1][order]
    return found


@dataclass(frozen=True, eq=False)
class _Copy:
    """One copy of the source, its rows in the source's order.

    Attributes:
        rows: of the source, those that are kept.
        ids: of the pieces, request by request: shared ones have a name (>= 0), own ones -1.
    """

    rows: IntArray
    offsets_s: FloatArray
    prompt_tokens: IntArray
    output_tokens: IntArray
    think_s: FloatArray | None
    starts: IntArray
    ids: IntArray

    @classmethod
    def of(
        cls, source: Trace, tree: SharedTree, how: Synthesis, number: int, draw: np.random.Generator
    ) -> _Copy:
        n = len(source)
        size = source.block_size
        offsets_s = _swapped(source.offsets_s, tree.families, draw)
        roots = _roots(how.prefix_root_multiplier, int(tree.families.max()) + 1, draw)[tree.families]
        whole = tree.context % size == 0  # else the whole prompt is shared, its last, partial block too
        blocks = np.floor(how.prefix_len_multiplier * tree.depths + _chances(tree, draw)).astype(np.int64)
        tokens = np.floor(how.prefix_len_multiplier * tree.context + draw.random(n)).astype(np.int64)
        context = np.where(whole, blocks * size, np.maximum(tokens, 1))
        own = _scaled(source.prompt_tokens - tree.context, how.prompt_len_multiplier, draw)
        own = np.where((context == 0) & (own == 0), 1, own)
        outputs = _scaled(source.output_tokens, how.output_len_multiplier, draw)
        outputs = np.clip(outputs, how.min_osl or 1, how.max_osl)
        inputs = context + own
        kept = np.ones(n, np.bool_)
        if how.min_isl is not None:
            kept &= inputs >= how.min_isl
        if how.max_isl is not None:
            kept &= inputs <= how.max_isl
        rows = np.flatnonzero(kept)
        num_shared = -(-context[rows] // size)
        num_own = np.where(_names_parts(source), -(-own // size), own // size if source.has_ids else 0)[rows]
        starts = np.concatenate(([0], np.cumsum(num_shared + num_own)))
        ids = np.full(int(starts[-1]), -1, np.int64)
        request = np.repeat(np.arange(len(rows)), num_shared)
        place = np.arange(len(request)) - np.repeat(np.cumsum(num_shared) - num_shared, num_shared)
        ids[starts[request] + place] = _names(tree, rows[request], place, roots[rows[request]], how, number)
        think_s = think_s_of(source, rows)
        return cls(rows, offsets_s[rows], inputs[rows], outputs[rows], think_s, starts, ids)


def _names_parts(source: Trace) -> BoolArray:
    """Whether the last, partial block of a request has an id, as its row of the source has it; where that
    ends with a full block, as the others have it. Where nothing has ids, nothing has."""
    counts, size = np.diff(source.starts), source.block_size
    named = counts * size > source.prompt_tokens
    ends_full = counts * size == source.prompt_tokens
    found: BoolArray = source.has_ids & (named | (ends_full & bool(named.any() or ends_full.all())))
    return found


def _chances(tree: SharedTree, draw: np.random.Generator) -> FloatArray:
    """What decides, for each request, whether its shared part is rounded up: the same for all whose shared
    parts end at one node, or the block gained would be nobody else's. Lasting nodes have enough of either."""
    each = draw.random(len(tree.depths))
    last = tree.nodes[tree.starts[:-1] + np.maximum(tree.depths - 1, 0)]
    alike = draw.random(len(tree.is_lasting))[last]
    return np.where(tree.is_lasting[last], each, alike)


def _names(
    tree: SharedTree, rows: IntArray, place: IntArray, roots: IntArray, how: Synthesis, copy: int
) -> IntArray:
    """What the shared block at each `place` of a new prompt is called: by the node it stands for, and by
    which of that node's blocks it is."""
    factor = how.prefix_len_multiplier
    depth = np.floor((place + 0.5) / factor).astype(np.int64)  # of the source, from 0
    beyond = depth >= tree.depths[rows]
    last = tree.starts[rows] + tree.depths[rows] - 1
    node = tree.nodes[np.where(beyond, last, tree.starts[rows] + depth)]
    # Rounded up past its last shared block: go where most others go on to, so as to share with them.
    further = np.where(beyond, tree.next[node], -1)
    node = np.where(further >= 0, further, node)
    per_node = math.ceil(factor) + 2
    nth = place - np.ceil(depth * factor - 0.5).astype(np.int64)
    num_roots = math.ceil(how.prefix_root_multiplier)
    nth = np.where(beyond & (further < 0), nth + per_node, nth)
    copy_of = np.where(tree.is_lasting[node], 0, copy)
    names: IntArray = ((copy_of * num_roots + roots) * len(tree.is_lasting) + node) * 2 * per_node + nth
    return names


def _joined(source: Trace, copies: list[_Copy], wanted: int, how: Synthesis) -> Trace:
    """One copy after another, the first `wanted` requests in time."""
    period_s = _period_s(source)
    offsets_s = np.concatenate([copy.offsets_s + i * period_s for i, copy in enumerate(copies)])
    numbers = np.repeat(np.arange(len(copies)), [len(copy.rows) for copy in copies])
    rows = np.concatenate([copy.rows for copy in copies])
    order = np.argsort(offsets_s, kind="stable")[:wanted]
    counts = np.concatenate([np.diff(copy.starts) for copy in copies])
    begins = np.cumsum(counts) - counts
    ids = np.concatenate([copy.ids for copy in copies])
    new_counts = counts[order]
    starts = np.concatenate(([0], np.cumsum(new_counts)))
    at = np.repeat(begins[order] - starts[:-1], new_counts) + np.arange(int(starts[-1]))
    sessions = turns = think_s = None
    if source.session_ids is not None:
        names = source.session_ids
        sessions = [
            names[row] if not number else f"{names[row]}-copy{number}"
            for row, number in zip(rows[order].tolist(), numbers[order].tolist(), strict=True)
        ]
        turns = None if source.turns is None else source.turns[rows[order]]
        thinks = [copy.think_s for copy in copies if copy.think_s is not None]
        think_s = np.concatenate(thinks)[order] / how.speedup if thinks else None
    times = offsets_s[order]
    return replace(
        source,
        offsets_s=(times - times[0]) / how.speedup,
        prompt_tokens=np.concatenate([copy.prompt_tokens for copy in copies])[order],
        output_tokens=np.concatenate([copy.output_tokens for copy in copies])[order],
        starts=starts,
        hash_ids=_numbered(ids[at]),
        session_ids=sessions,
        turns=turns,
        think_s=think_s,
    )


def _period_s(source: Trace) -> float:
    """After how long the source can begin anew: its duration, and a mean time between two requests."""
    last_s = float(source.offsets_s[-1])
    return last_s + last_s / max(1, len(source) - 1)


def _numbered(names: IntArray) -> IntArray:
    """Ids from 0 in order of first appearance; every own block (-1) gets one of its own."""
    names = names.copy()
    own = names < 0
    names[own] = names.max(initial=0) + 1 + np.arange(int(own.sum()))
    _, first, inverse = np.unique(names, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]


def _swapped(offsets_s: FloatArray, families: IntArray, draw: np.random.Generator) -> FloatArray:
    """Times after families next to each other in time have swapped their beginnings. Distances within a
    family stay; nothing moves before the first request of all, or behind the last."""
    num_families = int(families.max()) + 1
    begins = np.full(num_families, np.inf)
    np.minimum.at(begins, families, offsets_s)
    ends = np.zeros(num_families)
    np.maximum.at(ends, families, offsets_s)
    by_time = np.argsort(begins, kind="stable")
    new = begins.copy()
    for start in range(0, num_families, FAMILIES_PER_SWAP):
        group = by_time[start : start + FAMILIES_PER_SWAP]
        new[group] = begins[draw.permutation(group)]
    # One that would end behind the end of the trace stays where it was.
    late = new + (ends - begins) > offsets_s[-1]
    new[late] = begins[late]
    times_s: FloatArray = offsets_s + (new - begins)[families]
    known_s = np.unique(offsets_s)
    if len(known_s) > len(offsets_s) / 2:
        return times_s
    # A trace whose clock ticks: every time is one of the ticks, or bursts would be torn apart.
    right = np.clip(np.searchsorted(known_s, times_s), 1, len(known_s) - 1)
    left = right - 1
    nearer = times_s - known_s[left] <= known_s[right] - times_s
    ticks_s: FloatArray = known_s[np.where(nearer, left, right)]
    return ticks_s


def _roots(factor: float, num_families: int, draw: np.random.Generator) -> IntArray:
    """To which tree each family falls."""
    weights = np.minimum(1.0, factor - np.arange(math.ceil(factor)))
    return draw.choice(len(weights), size=num_families, p=weights / weights.sum()).astype(np.int64)


def _scaled(lengths: IntArray, factor: float, draw: np.random.Generator) -> IntArray:
    """Chance decides on fractions; what was at least 1 stays so."""
    scaled = np.floor(lengths * factor + draw.random(len(lengths))).astype(np.int64)
    return np.where(lengths > 0, np.maximum(scaled, 1), 0)
