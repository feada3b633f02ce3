"""Prompts in groups, each behind a prefix: ours, vLLM's prefix_repetition, SGLang's generated-shared-prefix.

Owns which request is of which group, in which order, and how long both pieces are. A pure function of its
arguments.

Invariant: two prompts of one group share its whole prefix and nothing behind it; two of different groups
share nothing.
"""

from __future__ import annotations

import numpy as np

from prefixlab.bench.config.dataset import DEFAULT_NUM_PROMPTS, length_range
from prefixlab.bench.config.sharing import GspConfig, PrefixRepetitionConfig, SharedPrefixConfig
from prefixlab.bench.workloads.draws import Draws, zipf_weights
from prefixlab.bench.workloads.generators.random import draw_lengths
from prefixlab.bench.workloads.sketch import IntArray, Sketches
from prefixlab.bench.workloads.workload import Workload
from prefixlab.core.errors import ConfigError

_GROUPS, _ORDER, _PREFIXES, _SUFFIXES, _OUTPUTS = range(5)


def shared_prefix_workload(config: SharedPrefixConfig, count: int | None, *key: int) -> Workload:
    """Prompts of one length. Groups come in turn, or as drawn by their popularity.

    Args:
        key: whole numbers ≥ 0 that draws depend on.
    """
    count = DEFAULT_NUM_PROMPTS if count is None else count
    num_groups, prefix = config.shared_groups, config.prefix_tokens
    if config.shared_popularity == "zipf":
        groups = _zipf(num_groups, config.shared_zipf_alpha, count, *key)
        among = f", by Zipf's law ({config.shared_zipf_alpha:g}) in {num_groups:,} groups"
    else:
        groups = np.arange(count) % num_groups
        among = f", in {num_groups:,} groups that come in turn" if num_groups > 1 else ""
    sketches = sketch_groups(
        groups,
        np.full(num_groups, prefix),
        np.full(count, config.shared_len - prefix),
        np.full(count, config.shared_output_len),
    )
    note = (
        f"prompts of {config.shared_len:,} tokens, of which {prefix:,} are shared{among}; outputs of "
        f"{config.shared_output_len:,}"
    )
    return Workload(sketches, notes=(note,), length_flags="--shared-len and --shared-output-len")


def prefix_repetition_workload(
    config: PrefixRepetitionConfig, count: int | None, *key: int, shuffle: bool
) -> Workload:
    """As many prompts of each prefix, the rest of `count` left out as vLLM's client does, and shuffled unless
    told otherwise.

    Raises:
        ConfigError: there are fewer prompts than prefixes.
    """
    count = DEFAULT_NUM_PROMPTS if count is None else count
    num_prefixes = config.prefix_repetition_num_prefixes
    per_prefix = count // num_prefixes
    if not per_prefix:
        raise ConfigError(
            f"--prefix-repetition-num-prefixes {num_prefixes}: {count} requests cannot have as many prefixes"
        )
    groups = np.repeat(np.arange(num_prefixes), per_prefix)
    if shuffle:
        groups = groups[Draws(*key, _ORDER).order(len(groups))]
    prefix, suffix = config.prefix_repetition_prefix_len, config.prefix_repetition_suffix_len
    outputs = config.prefix_repetition_output_len
    sketches = sketch_groups(
        groups,
        np.full(num_prefixes, prefix),
        np.full(len(groups), suffix),
        np.full(len(groups), outputs),
    )
    note = (
        f"{num_prefixes:,} prefixes of {prefix:,} tokens, each before {per_prefix:,} suffixes of {suffix:,}, "
        f"{'shuffled' if shuffle else 'prefix by prefix'}; outputs of {outputs:,}"
    )
    notes = [note]
    if len(groups) < count:
        notes.append(
            f"{len(groups):,} requests rather than {count:,}, so that every prefix has as many, as vLLM's "
            "client does"
        )
    flags = (
        "--prefix-repetition-prefix-len, --prefix-repetition-suffix-len and --prefix-repetition-output-len"
    )
    return Workload(sketches, notes=tuple(notes), length_flags=flags)


def generated_shared_prefix_workload(config: GspConfig, count: int | None, *key: int) -> Workload:
    """Groups of the same size, as far as `count` allows; or drawn request by request, by Zipf's law."""
    count = config.num_prompts if count is None else count
    num_groups, alpha = config.gsp_num_groups, config.gsp_zipf_alpha
    if config.gsp_group_distribution == "zipf":
        groups = _zipf(num_groups, alpha, count, *key)
        if config.gsp_ordered:
            groups = np.sort(groups, kind="stable")
        sizes = f"sized by Zipf's law ({alpha:g})"
    else:
        groups = np.sort(np.arange(count) % num_groups)
        if not config.gsp_ordered:
            groups = groups[Draws(*key, _ORDER).order(count)]
        sizes = f"of {count / num_groups:,.4g} prompts each" + (" on average" if count % num_groups else "")
    prefixes, suffixes, outputs = (
        length_range(length, config.gsp_range_ratio, as_sglang=True)
        for length in (config.gsp_system_prompt_len, config.gsp_question_len, config.gsp_output_len)
    )
    sketches = sketch_groups(
        groups,
        draw_lengths(prefixes, num_groups, *key, _PREFIXES),
        draw_lengths(suffixes, count, *key, _SUFFIXES),
        draw_lengths(outputs, count, *key, _OUTPUTS),
    )
    order = "group by group" if config.gsp_ordered else "in random order"
    note = (
        f"{num_groups:,} groups {sizes}, {order}: system prompts of {prefixes} tokens, questions of "
        f"{suffixes}; outputs of {outputs}"
    )
    flags = "--gsp-system-prompt-len, --gsp-question-len and --gsp-output-len"
    return Workload(sketches, notes=(note,), length_flags=flags)


def sketch_groups(
    groups: IntArray, prefix_tokens: IntArray, suffix_tokens: IntArray, output_tokens: IntArray
) -> Sketches:
    """Each request its group's prefix, then a suffix of its own.

    Args:
        groups: shape (n,), of each request.
        prefix_tokens: shape (num_groups,); 0: the group shares nothing.
        suffix_tokens, output_tokens: shape (n,), at least 1 each.
    """
    count = len(groups)
    keys = np.stack([groups, -1 - np.arange(count)], axis=1)
    sizes = np.stack([prefix_tokens[groups], suffix_tokens], axis=1)
    there = sizes > 0
    starts = np.concatenate(([0], np.cumsum(there.sum(axis=1))))
    return Sketches(starts, keys[there], sizes[there], output_tokens)


def _zipf(num_groups: int, exponent: float, count: int, *key: int) -> IntArray:
    return Draws(*key, _GROUPS).choices(zipf_weights(num_groups, exponent), count)
