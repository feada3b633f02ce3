"""The warm-cache workload: prompts of one length that share exactly a given part, and nothing beyond it.

Owns the prompts of one point: a warm-up of exactly the shared prefix, prompts that continue it, and a probe
that shares nothing with either. A pure function of its arguments.

Invariant: whatever the page size, two prompts of a point share exactly `num_shared_tokens` tokens, and so do
each of them and the warm-up; the probe shares with them no more than a chat template's head. (The first
tokens after the shared prefix, and the probe's, are all different.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prefixlab.bench.workloads.tokens import TokenStream, with_first
from prefixlab.bench.workloads.wording import Prompt, Wording
from prefixlab.core.errors import ConfigError
from prefixlab.core.hit_oracle import expected_cached_tokens

MAX_PCT = 99
_FIRSTS, _PREFIX, _PROBE, _SUFFIXES = range(4)


@dataclass(frozen=True, slots=True)
class PointShape:
    """The lengths of one point, before any prompt is made.

    Attributes:
        pct: intended share of the prompt, in percent.
        prefix_len: intended shared tokens, `total_tokens * pct // 100`.
        num_shared_tokens: tokens really shared: `prefix_len`, or a chat template's head where that is longer.
    """

    pct: int
    total_tokens: int
    prefix_len: int
    num_shared_tokens: int

    @property
    def suffix_len(self) -> int:
        return self.total_tokens - self.prefix_len

    def expected_cached_tokens(self, page_size: int) -> int:
        """Tokens of each prompt that the cache must serve after the warm-up."""
        return expected_cached_tokens(self.num_shared_tokens, self.total_tokens, page_size)


@dataclass(frozen=True, slots=True)
class WarmCachePoint:
    """The prompts of one point.

    Attributes:
        warm_up: what is sent first; None when nothing is shared.
        probe: for proving the cache cold.
    """

    shape: PointShape
    warm_up: Prompt | None
    probe: Prompt
    prompts: tuple[Prompt, ...]


def shape_point(
    pct: int, total_tokens: int, *, num_head_tokens: int = 0, num_tail_tokens: int = 0
) -> PointShape:
    """The lengths at `pct` percent, inside a chat template's head and tail if there are any.

    Raises:
        ConfigError: a percentage outside 0 … 99, or a prompt too short to hold what it should.
    """
    if not 0 <= pct <= MAX_PCT:
        raise ConfigError(f"--pcts takes 0 to {MAX_PCT}, not {pct}: at 100 all prompts would be one")
    prefix_len = total_tokens * pct // 100
    num_shared = max(prefix_len, num_head_tokens)
    if total_tokens - num_shared - num_tail_tokens < 1:
        template = f" (the chat template takes {num_head_tokens} tokens before and {num_tail_tokens} after)"
        raise ConfigError(
            f"--total-tokens {total_tokens} leaves no room for a suffix at {pct} %"
            + (template if num_head_tokens + num_tail_tokens else "")
        )
    return PointShape(pct, total_tokens, prefix_len, num_shared)


def make_point(
    wording: Wording, shape: PointShape, *, num_prompts: int, seed: int, probe_tokens: int, salt: int = 0
) -> WarmCachePoint:
    """The prompts of one point.

    Args:
        probe_tokens: length of the probe's content.
        salt: other prompts for the same seed, where a server cannot be emptied; 0 for none.

    Raises:
        ConfigError: the vocabulary is smaller than the number of prompts.
    """

    def stream(*part: int) -> TokenStream:
        return TokenStream(wording.vocabulary, seed, shape.pct, salt, *part)

    prefix_len = shape.num_shared_tokens - wording.num_head_tokens
    suffix_len = shape.total_tokens - shape.num_shared_tokens - wording.num_tail_tokens
    firsts = stream(_FIRSTS).distinct(num_prompts + 2, "prompts of one point, and two that test the cache,")
    probe_first, spare_first, *suffix_firsts = firsts.tolist()
    prefix = stream(_PREFIX).draw(prefix_len)
    if prefix_len and prefix[0] == probe_first:
        prefix = with_first(spare_first, prefix)
    suffixes = (
        with_first(first, stream(_SUFFIXES, number).draw(suffix_len))
        for number, first in enumerate(suffix_firsts)
    )
    # A template's head is shared by all, so where nothing else is, the warm-up must leave that behind.
    warm_up = prefix if prefix_len or not wording.num_head_tokens else firsts[1:2]
    return WarmCachePoint(
        shape=shape,
        warm_up=wording.prompt(warm_up) if len(warm_up) else None,
        probe=wording.prompt(with_first(probe_first, stream(_PROBE).draw(probe_tokens))),
        prompts=tuple(wording.prompt(np.concatenate((prefix, suffix))) for suffix in suffixes),
    )
