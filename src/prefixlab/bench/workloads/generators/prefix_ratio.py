"""Prompts of which a given part is a prefix, one of a few: the workload of Dynamo's prefix-ratio benchmark.

Owns which request has which prefix, how long it is, and which of several servers it is for. A pure function
of its arguments.

Invariants: lengths are `PrefixRatioConfig.lengths`, exact where no deviation is asked for; requests for
different servers share nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prefixlab.bench.config.prefix_ratio import PrefixRatioConfig
from prefixlab.bench.workloads.draws import Draws
from prefixlab.bench.workloads.sketch import IntArray, Sketches
from prefixlab.bench.workloads.workload import Workload
from prefixlab.core.errors import ConfigError

_PREFIXES, _INPUTS, _OUTPUTS = range(3)
LENGTH_FLAGS = "--isl and --osl"


@dataclass(frozen=True, slots=True)
class PrefixRatioShape:
    """What prompts to make.

    Attributes:
        num_servers: that share the requests.
    """

    num_prompts: int
    isl: int
    osl: int
    num_servers: int = 1


def shares(num_prompts: int, num_servers: int) -> list[int]:
    """Requests of each server: as many for each, what is left over for the first."""
    each, rest = divmod(num_prompts, num_servers)
    return [each + rest, *[each] * (num_servers - 1)]


def prefix_ratio_workload(config: PrefixRatioConfig, shape: PrefixRatioShape, *key: int) -> Workload:
    """`key`: whole numbers ≥ 0 that the draws depend on. ConfigError where prompts would be empty."""
    prefix_len, rest_len = config.lengths(shape.isl)
    if not prefix_len + rest_len:
        raise ConfigError(
            f"--isl {shape.isl} at ratio {config.prefix_ratio:g} leaves prompts without a token"
        )
    shared = (
        f"{prefix_len:,} of them one of {config.num_prefix_prompts:,} prefixes, which each request chooses "
        "at random"
        if prefix_len
        else "nothing shared"
    )
    notes = [f"prompts of {prefix_len + rest_len:,} tokens, {shared}"]
    if prefix_len + rest_len != shape.isl:
        notes.append(
            f"ratio {config.prefix_ratio:g} of --isl {shape.isl:,} is {prefix_len:,} and {rest_len:,} "
            f"tokens, {shape.isl - prefix_len - rest_len} less together: both are cut off to whole tokens, "
            "as Dynamo's benchmark does"
        )
    if config.isl_stddev or config.osl_stddev:
        notes.append(
            f"lengths vary: standard deviation {config.isl_stddev:g} of the tokens behind the prefix, "
            f"{config.osl_stddev:g} of output tokens"
        )
    if shape.num_servers > 1:
        said = ", ".join(f"{part:,}" for part in shares(shape.num_prompts, shape.num_servers))
        notes.append(f"{shape.num_servers} URLs asked at the same time: {said} requests; figures are pooled")
    parts = shares(shape.num_prompts, shape.num_servers)
    return Workload(
        sketch(config, shape, *key),
        notes=tuple(notes),
        length_flags=LENGTH_FLAGS,
        servers=np.repeat(np.arange(shape.num_servers), parts),
    )


def sketch(config: PrefixRatioConfig, shape: PrefixRatioShape, *key: int) -> Sketches:
    """Server by server: those of the first come first."""
    prefix_len, rest_len = config.lengths(shape.isl)
    columns: list[tuple[IntArray, IntArray, IntArray]] = []
    for server, count in enumerate(shares(shape.num_prompts, shape.num_servers)):
        own = (*key, server) if config.url_seeds == "different" else (*key, 0)
        prefixes = Draws(*own, _PREFIXES).below(config.num_prefix_prompts, count)
        columns.append(
            (
                prefixes + server * config.num_prefix_prompts,
                _lengths(rest_len, config.isl_stddev, count, *own, _INPUTS),
                _lengths(shape.osl, config.osl_stddev, count, *own, _OUTPUTS),
            )
        )
    prefixes, rests, outputs = (np.concatenate(column) for column in zip(*columns, strict=True))
    keys = np.stack([prefixes, -1 - np.arange(len(prefixes))], axis=1)
    sizes = np.stack([np.full_like(rests, prefix_len), rests], axis=1)
    there = sizes > 0  # at 0 there is no prefix, at 1 nothing behind it
    starts = np.concatenate(([0], np.cumsum(there.sum(axis=1))))
    return Sketches(starts, keys[there], sizes[there], outputs)


def _lengths(mean: int, deviation: float, count: int, *key: int) -> IntArray:
    """Normal about the mean, at least 1; nothing where the mean is nothing."""
    if not mean:
        return np.zeros(count, np.int64)
    drawn = np.rint(mean * (1 + deviation * Draws(*key).normal(count)))
    return np.maximum(1, drawn).astype(np.int64)
