"""The random workload: made-up prompts of given lengths that share a prefix of exactly so many tokens.

Owns their lengths. A pure function of its arguments.

Invariant: a longer run begins like a shorter one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prefixlab.bench.config.dataset import LengthRange
from prefixlab.bench.workloads.generators.lengths import Seen, Spread
from prefixlab.bench.workloads.sketch import IntArray, Sketches
from prefixlab.bench.workloads.tokens import TokenStream, Vocabulary
from prefixlab.bench.workloads.workload import Workload

_INPUTS, _OUTPUTS = range(2)
_PREFIX_KEY = 0


@dataclass(frozen=True, slots=True)
class RandomShape:
    """What prompts to make.

    Attributes:
        inputs: tokens of a prompt behind the shared prefix, a chat template's included.
        num_prefix_tokens: shared by all, besides.
        seen: lengths drawn instead of `inputs` and `outputs`.
    """

    num_prompts: int
    inputs: LengthRange | Spread
    outputs: LengthRange | Spread
    num_prefix_tokens: int = 0
    seen: Seen | None = None


def random_workload(shape: RandomShape, *key: int) -> Workload:
    """`key`: whole numbers ≥ 0 that the lengths depend on."""
    behind = f" behind {shape.num_prefix_tokens:,} that all share" if shape.num_prefix_tokens else ""
    if shape.seen is None:
        notes = (f"prompts of {shape.inputs} tokens{behind}, outputs of {shape.outputs}",)
        flags = "--random-input-len, --random-prefix-len and --random-output-len"
    else:
        notes = (f"lengths of prompts{behind} and of outputs are those of {shape.seen.name}",)
        flags = "--random-length-file and --random-prefix-len"
    return Workload(sketch_random(shape, *key), notes=notes, length_flags=flags)


def sketch_random(shape: RandomShape, *key: int) -> Sketches:
    if shape.seen is None:
        inputs = draw_lengths(shape.inputs, shape.num_prompts, *key, _INPUTS)
        outputs = draw_lengths(shape.outputs, shape.num_prompts, *key, _OUTPUTS)
    else:
        inputs, outputs = shape.seen.draw(shape.num_prompts, *key)
    keys, sizes = -1 - np.arange(shape.num_prompts), inputs
    if shape.num_prefix_tokens:
        keys = np.stack([np.full_like(keys, _PREFIX_KEY), keys], axis=1).ravel()
        sizes = np.stack([np.full_like(sizes, shape.num_prefix_tokens), sizes], axis=1).ravel()
    starts = np.linspace(0, len(keys), shape.num_prompts + 1).astype(np.int64)
    return Sketches(starts, keys, sizes, outputs)


def draw_lengths(lengths: LengthRange | Spread, count: int, *key: int) -> IntArray:
    """Evenly from a range, or by a law; shape (count,)."""
    if isinstance(lengths, Spread):
        return lengths.draw(count, *key)
    choices = np.arange(lengths.low, lengths.high + 1, dtype=np.int32)
    return TokenStream(Vocabulary(choices, "lengths"), *key).draw(count).astype(np.int64)
