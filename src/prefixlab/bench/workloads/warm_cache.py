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
class WarmCachePoint:
    """One point of the sweep.

    Attributes:
        pct: intended share of the prompt, in percent.
        prefix_len: intended shared tokens, `total_tokens * pct // 100`.
        num_shared_tokens: tokens really shared: `prefix_len`, or a chat template's head where that is longer.
        warm_up: what is sent first; None when nothing is shared.
        probe: for proving the cache cold.
    """

    pct: int
    total_tokens: int
    prefix_len: int
    num_shared_tokens: int
    warm_up: Prompt | None
    probe: Prompt
    prompts: tuple[Prompt, ...]

    @property
    def suffix_len(self) -> int:
        return self.total_tokens - self.prefix_len

    def expected_cached_tokens(self, page_size: int) -> int:
        """Tokens of each prompt that the cache must serve after the warm-up."""
        return expected_cached_tokens(self.num_shared_tokens, self.total_tokens, page_size)


def make_point(
    wording: Wording,
    *,
    pct: int,
    total_tokens: int,
    num_prompts: int,
    seed: int,
    probe_tokens: int,
    salt: int = 0,
) -> WarmCachePoint:
    """The prompts for `pct` percent shared.

    Args:
        probe_tokens: length of the probe's content.
        salt: other prompts for the same seed, where a server cannot be emptied; 0 for none.

    Raises:
        ConfigError: a percentage outside 0 … 99, a vocabulary smaller than the number of prompts, or a prompt
            too short to hold what it should.
    """
    if not 0 <= pct <= MAX_PCT:
        raise ConfigError(f"--pcts takes 0 to {MAX_PCT}, not {pct}: at 100 all prompts would be one")
    head, tail = wording.num_head_tokens, wording.num_tail_tokens
    prefix_len = total_tokens * pct // 100
    content_prefix_len = max(0, prefix_len - head)
    num_shared = head + content_prefix_len
    content_suffix_len = total_tokens - num_shared - tail
    if content_suffix_len < 1:
        raise ConfigError(
            f"--total-tokens {total_tokens} leaves no room at {pct} % for a suffix"
            + (f" (the chat template takes {head} tokens before and {tail} after)" if head + tail else "")
        )

    def stream(*part: int) -> TokenStream:
        return TokenStream(wording.vocabulary, seed, pct, salt, *part)

    probe_first, lone_first, *firsts = (
        stream(_FIRSTS).distinct(num_prompts + 2, "prompts of one point").tolist()
    )
    prefix = stream(_PREFIX).draw(content_prefix_len)
    if len(prefix) and prefix[0] == probe_first:
        prefix = with_first(lone_first, prefix)
    suffixes = (
        with_first(first, stream(_SUFFIXES, number).draw(content_suffix_len))
        for number, first in enumerate(firsts)
    )
    # A template's head is shared by all, so at 0 % it is what the warm-up must leave behind.
    warm_up = prefix if len(prefix) or not head else with_first(lone_first, stream(_PREFIX).draw(1))
    return WarmCachePoint(
        pct=pct,
        total_tokens=total_tokens,
        prefix_len=prefix_len,
        num_shared_tokens=num_shared,
        warm_up=wording.prompt(warm_up) if len(warm_up) else None,
        probe=wording.prompt(with_first(probe_first, stream(_PROBE).draw(probe_tokens))),
        prompts=tuple(wording.prompt(np.concatenate((prefix, suffix))) for suffix in suffixes),
    )
