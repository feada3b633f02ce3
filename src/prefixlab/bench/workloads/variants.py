"""One workload asked in several ways, so that whoever is compared is asked the same as far as can be.

Owns what may differ: the tokens (a salt), whether anything is shared, and whether what is shared is in the
cache already. Lengths, order and structure are the workload's.

Invariant: variants of one workload have as many requests, each as long and asked for as many tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from prefixlab.bench.workloads.sketch import Sketches

OWN_TOKENS = 8
"""Behind the prefix in a request that only brings it into the cache."""


@dataclass(frozen=True, slots=True)
class Variant:
    """How a run asks, beyond its settings.

    Attributes:
        salt: makes other tokens of the same structure.
        unshared: no prompt begins as another does.
        prewarmed: before each repeat every shared prefix is sent once, and not measured.
        cold_once: where the cache is to be emptied, only before the first repeat: the prompts of later ones
            are new to it anyway.
    """

    salt: int = 0
    unshared: bool = False
    prewarmed: bool = False
    cold_once: bool = False


PLAIN = Variant()


def unshared(sketches: Sketches) -> Sketches:
    """Every piece nobody else's."""
    return replace(sketches, keys=-1 - np.arange(len(sketches.keys), dtype=np.int64))


def with_prefixes_first(sketches: Sketches, own_tokens: int = OWN_TOKENS) -> tuple[Sketches, int]:
    """Before the requests one for each of their prefixes: the leading pieces that may stand in several
    prompts, then a few tokens of its own. Returns also how many these are."""
    rows = [
        list(zip(sketches.keys[a:b].tolist(), sketches.sizes[a:b].tolist(), strict=True))
        for a, b in zip(sketches.starts[:-1].tolist(), sketches.starts[1:].tolist(), strict=True)
    ]
    prefixes = list(dict.fromkeys(prefix for row in rows if (prefix := _leading(row))))
    if not prefixes or sketches.after is not None:
        return sketches, 0
    unused = min(0, int(sketches.keys.min())) - 1
    first = [[*prefix, (unused - number, own_tokens)] for number, prefix in enumerate(prefixes)]
    outputs = [1] * len(first) + sketches.output_tokens.tolist()
    return Sketches.of([*first, *rows], outputs), len(first)


def _leading(row: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    own = next((place for place, (key, _) in enumerate(row) if key < 0), len(row))
    return tuple(row[:own])
