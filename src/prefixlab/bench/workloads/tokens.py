"""Seeded token ids: the same on every machine, from a vocabulary whose special ids are left out.

Owns the randomness of prompts. Draws from raw PCG64 output seeded through SeedSequence, the two parts of
NumPy whose streams are promised never to change: prompts must not depend on a library's version.

Invariant: a stream depends on its key alone, so no point's prompts depend on which others were made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from prefixlab.core.block_hash import TokenIds, as_token_ids
from prefixlab.core.errors import ConfigError
from prefixlab.core.seams import Tokenizer


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Ids that prompts may be made of.

    Attributes:
        ids: shape (n,), int32, distinct and ascending.
        source: where the knowledge comes from, for people.
    """

    ids: TokenIds
    source: str

    @classmethod
    def of_size(cls, size: int, source: str, avoid: Collection[int] = ()) -> Vocabulary:
        """All of 0 … size - 1 but `avoid`."""
        keep = np.ones(size, dtype=bool)
        keep[[token for token in avoid if 0 <= token < size]] = False
        return cls(np.flatnonzero(keep).astype(np.int32), source)

    @classmethod
    def of_tokenizer(cls, tokenizer: Tokenizer) -> Vocabulary:
        """All ids that decode to text of their own: special ones vanish in `decode`."""
        size = tokenizer.vocab_size
        special = {token for token in range(size) if not tokenizer.decode([token])}
        return cls.of_size(
            size,
            f"those of the tokenizer's {size:,} that are no special tokens",
            special | tokenizer.eos_token_ids,
        )

    def without(self, avoid: Collection[int]) -> Vocabulary:
        return Vocabulary(self.ids[~np.isin(self.ids, list(avoid))], self.source)

    def below(self, limit: int) -> Vocabulary:
        """The ids under `limit`: a model may have fewer than its tokenizer."""
        return Vocabulary(self.ids[self.ids < limit], self.source)

    def describe(self) -> str:
        whole = len(self) > 0 and int(self.ids[-1]) == len(self) - 1
        kind = f"random token ids below {len(self):,}" if whole else f"{len(self):,} random token ids"
        return f"{kind} ({self.source})"

    def __len__(self) -> int:
        return len(self.ids)


class TokenStream:
    """Ids drawn one after another from `vocabulary`. `key`: whole numbers ≥ 0, e.g. (seed, point)."""

    def __init__(self, vocabulary: Vocabulary, *key: int) -> None:
        if any(part < 0 for part in key):
            raise ConfigError(f"a seed must not be negative, not {min(key)}")
        self._ids = vocabulary.ids
        # Hashed, because SeedSequence takes (1,) and (1, 0) for the same.
        entropy = int.from_bytes(hashlib.sha256(repr(tuple(map(int, key))).encode()).digest())
        self._bits = np.random.PCG64(np.random.SeedSequence(entropy))

    def draw(self, count: int) -> TokenIds:
        """`count` ids, each uniform over the vocabulary (up to a bias below 2⁻³²), shape (count,)."""
        picks = (self._raw(count) >> np.uint64(32)) * np.uint64(len(self._ids)) >> np.uint64(32)
        return as_token_ids(self._ids[picks.astype(np.int64)])

    def distinct(self, count: int, purpose: str) -> TokenIds:
        """`count` different ids in random order, shape (count,).

        Raises:
            ConfigError: the vocabulary holds fewer.
        """
        if count > len(self._ids):
            raise ConfigError(
                f"{purpose} must all differ in their first token: that takes {count:,} usable token ids, "
                f"and the vocabulary has {len(self._ids):,}"
            )
        order = np.argsort(self._raw(len(self._ids)), kind="stable")
        return as_token_ids(self._ids[order[:count]])

    def _raw(self, count: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        return np.atleast_1d(np.asarray(self._bits.random_raw(count), dtype=np.uint64))


def with_first(first: int, rest: TokenIds) -> TokenIds:
    """`rest` with its first token set to `first`, in a new array."""
    tokens = rest.copy()
    tokens[:1] = first
    return tokens
