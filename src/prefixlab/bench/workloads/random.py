"""The random workload: made-up prompts of given lengths that share a prefix of exactly so many tokens.

Owns lengths, and the tokens that tell prompts apart. In which words they travel is `wording.py`'s.

Invariants: prompts are a function of (vocabulary, shape, key) alone, and a longer run begins like a shorter
one; after the shared prefix no two of them agree in more than `num_telling_tokens - 1` tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from prefixlab.bench.config.dataset import LengthRange
from prefixlab.bench.workloads.tokens import TokenStream, Vocabulary
from prefixlab.bench.workloads.wording import Prompt, Wording
from prefixlab.core.block_hash import TokenIds
from prefixlab.core.errors import ConfigError

_INPUTS, _OUTPUTS, _PREFIX, _FIRSTS, _BODIES, _PROBE = range(6)
BODIES_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class RandomShape:
    """What prompts to make.

    Attributes:
        inputs: tokens of a prompt behind the shared prefix, a chat template's included.
        num_prefix_tokens: shared by all, besides.
    """

    num_prompts: int
    inputs: LengthRange
    outputs: LengthRange
    num_prefix_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Lengths:
    """Of every request, each shape (num_prompts,): tokens of the whole prompt, and of the output."""

    prompt: TokenIds
    output: TokenIds


def draw_lengths(shape: RandomShape, *key: int) -> Lengths:
    inputs = _draw(shape.inputs, shape.num_prompts, *key, _INPUTS)
    outputs = _draw(shape.outputs, shape.num_prompts, *key, _OUTPUTS)
    return Lengths(inputs + np.int32(shape.num_prefix_tokens), outputs)


def _draw(lengths: LengthRange, count: int, *key: int) -> TokenIds:
    choices = np.arange(lengths.low, lengths.high + 1, dtype=np.int32)
    return TokenStream(Vocabulary(choices, "lengths"), *key).draw(count)


def num_shared_tokens(wording: Wording, shape: RandomShape) -> int:
    """Tokens all prompts begin with: the prefix, or a chat template's head where that is longer."""
    return max(shape.num_prefix_tokens, wording.num_head_tokens)


def num_telling_tokens(vocabulary: Vocabulary, num_prompts: int) -> int:
    """Tokens needed to tell so many prompts apart: 1 where there are enough ids."""
    count, combinations = 1, len(vocabulary)
    while combinations < num_prompts:
        count, combinations = count + 1, combinations * len(vocabulary)
        if len(vocabulary) < 2:
            raise ConfigError(f"{num_prompts:,} prompts cannot differ: {vocabulary.describe()}")
    return count


def make_prompts(wording: Wording, shape: RandomShape, *key: int, salt: int = 0) -> Iterator[Prompt]:
    """The prompts, one after another.

    Args:
        key: whole numbers ≥ 0 that lengths and tokens depend on.
        salt: makes other tokens of the same lengths.

    Raises:
        ConfigError: a prompt is too short to hold what it must.
    """
    lengths = draw_lengths(shape, *key).prompt
    vocabulary = wording.vocabulary

    def stream(part: int) -> TokenStream:
        return TokenStream(vocabulary, *key, salt, part)

    around = wording.num_head_tokens + wording.num_tail_tokens
    alphabet = stream(_FIRSTS).distinct(len(vocabulary), "prompts")
    prefix = stream(_PREFIX).draw(num_shared_tokens(wording, shape) - wording.num_head_tokens)
    prefix[:1] = alphabet[-1]
    telling = num_telling_tokens(vocabulary, shape.num_prompts)
    shortest = int(lengths.min()) - around - len(prefix)
    if shortest < telling:
        template = f", {around} of them a chat template's" if around else ""
        raise ConfigError(
            f"prompts of {int(lengths.min())} tokens{template}, are too short: {shape.num_prompts:,} "
            f"different ones take {telling} more than the {len(prefix)} they share"
        )
    bodies = stream(_BODIES)
    for start in range(0, shape.num_prompts, BODIES_AT_ONCE):
        sizes = lengths[start : start + BODIES_AT_ONCE] - around - len(prefix)
        drawn = np.split(bodies.draw(int(sizes.sum())), np.cumsum(sizes)[:-1])
        for number, body in enumerate(drawn, start=start):
            content = np.concatenate((prefix, body))
            content[len(prefix) : len(prefix) + telling] = _spell(number, alphabet, telling)
            yield wording.prompt(content)


def make_probe(wording: Wording, shape: RandomShape, num_tokens: int, *key: int, salt: int = 0) -> Prompt:
    """A prompt for proving the cache cold: where there are enough ids, none of `make_prompts` with the same
    arguments begins as it does (a chat template's head apart)."""
    vocabulary = wording.vocabulary
    alphabet = TokenStream(vocabulary, *key, salt, _FIRSTS).distinct(len(vocabulary), "prompts")
    content = TokenStream(vocabulary, *key, salt, _PROBE).draw(num_tokens)
    content[:1] = alphabet[min(shape.num_prompts, len(alphabet) - 2)]
    return wording.prompt(content)


def make_trial(
    vocabulary: Vocabulary, shape: RandomShape, *key: int, salts: Iterable[int] = (0,)
) -> TokenIds:
    """Two tokens that show whether a server knows the vocabulary: its highest id is the second. Where there
    are enough ids, no prompt of `make_prompts` with the same arguments, and any of the salts, begins with the
    first."""
    unused = vocabulary.ids
    for salt in salts:
        alphabet = TokenStream(vocabulary, *key, salt, _FIRSTS).distinct(len(vocabulary), "prompts")
        firsts = alphabet[-1:] if shape.num_prefix_tokens else alphabet[: shape.num_prompts]
        unused = unused[~np.isin(unused, firsts)]
    return np.array([*unused[:1], vocabulary.ids[-1]], np.int32)


def _spell(number: int, alphabet: TokenIds, num_digits: int) -> TokenIds:
    """`number` in base `len(alphabet)`, its fastest digit first, so that few prompts share a first token."""
    digits = []
    for _ in range(num_digits):
        number, digit = divmod(number, len(alphabet))
        digits.append(digit)
    return alphabet[digits]
