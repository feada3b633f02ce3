"""Tokens for sketches: the same piece gets the same tokens wherever it stands, and where two prompts part,
the next tokens differ.

Owns the way from pieces to content, inside whatever a wording puts around it, and the prompts that must share
nothing with any of them: the probe of a cold start, the trial of a vocabulary.

Invariants: contents are a function of (sketches, wording, key, salt) alone; two of them share exactly the
tokens that `Sketches.shared_tokens` says. Where more prompts part at one place than the vocabulary has ids,
it takes several tokens to tell them apart, and they may agree in all of these but one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from prefixlab.bench.workloads.sketch import IntArray, Sketches
from prefixlab.bench.workloads.tokens import TokenStream, Vocabulary
from prefixlab.bench.workloads.wording import Prompt, Wording
from prefixlab.core.block_hash import TokenIds
from prefixlab.core.errors import ConfigError

_FIRSTS, _SHARED, _OWN, _PROBE = range(4)
_KEPT_TOKENS = 32 << 20
"""Of shared pieces, so that a trace's blocks need not be drawn again for every request."""
_ROWS_AT_ONCE = 256


def fit(sketches: Sketches, wording: Wording) -> Sketches:
    """The content of each prompt: what a chat template's head and tail leave of its first and last piece,
    which count them in. What continues another prompt has neither.

    Raises:
        ConfigError: a piece is too short for that, or to tell its prompt from others.
    """
    sizes = sketches.sizes.copy()
    whole = np.ones(len(sketches), np.bool_) if sketches.continues is None else ~sketches.continues
    first, last = sketches.starts[:-1][whole], sketches.starts[1:][whole] - 1
    sizes[first] -= wording.num_head_tokens
    sizes[last] -= wording.num_tail_tokens
    needed = _num_telling(sketches, wording.vocabulary)
    short = np.flatnonzero(sizes < needed)
    if len(short):
        row = int(np.searchsorted(sketches.starts, short[0], side="right")) - 1
        around = wording.num_head_tokens + wording.num_tail_tokens
        template = f", {around} of them a chat template's," if around else ""
        raise ConfigError(
            f"the prompt of request {row + 1} is too short: {int(sketches.prompt_tokens[row]):,} tokens"
            f"{template} and a part of {int(sketches.sizes[short[0]])} where prompts differ; to tell them "
            f"apart takes {int(needed[short[0]])}"
        )
    return replace(sketches, sizes=sizes)


def shared_tokens(sketches: Sketches, wording: Wording) -> IntArray:
    """How many leading tokens of each prompt an ideal cache holds when it comes, shape (n,): see
    `Sketches.shared_tokens`; with a template, its head at least."""
    if not (wording.num_head_tokens or wording.num_tail_tokens):
        return sketches.shared_tokens
    content = fit(sketches, wording)
    shared = content.shared_tokens + wording.num_head_tokens
    shared += np.where(content.trie.repeats, wording.num_tail_tokens, 0)
    shared[:1] = 0
    return shared


def make_contents(sketches: Sketches, wording: Wording, *key: int, salt: int = 0) -> Iterator[TokenIds]:
    """Content of each prompt, one after another; of one that continues another, only what is new.

    Args:
        key: whole numbers ≥ 0 that the tokens depend on.
        salt: makes other tokens of the same structure.

    Raises:
        ConfigError: see `fit`.
    """
    vocabulary = wording.vocabulary
    content = fit(sketches, wording)
    trie, telling = content.trie, _num_telling(sketches, vocabulary)
    alphabet = _alphabet(vocabulary, *key, salt=salt)
    own = TokenStream(vocabulary, *key, salt, _OWN)
    blocks = _Blocks(vocabulary, (*key, salt, _SHARED))
    for begin in range(0, len(content), _ROWS_AT_ONCE):
        bounds = content.starts[begin : begin + _ROWS_AT_ONCE + 1]
        where = slice(int(bounds[0]), int(bounds[-1]))
        keys, sizes = content.keys[where], content.sizes[where]
        drawn = iter(_split(own, sizes[keys < 0]))
        pieces = []
        columns = (keys, sizes, trie.nodes[where], telling[where])
        for piece_key, size, node, digits in zip(*(column.tolist() for column in columns), strict=True):
            piece = next(drawn) if piece_key < 0 else blocks.take(piece_key, size)
            piece[:digits] = _spell(int(trie.ranks[node]), alphabet, digits)
            pieces.append(piece)
        for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            yield np.concatenate(pieces[start - where.start : stop - where.start])


def make_prompts(sketches: Sketches, wording: Wording, *key: int, salt: int = 0) -> Iterator[Prompt]:
    """`make_contents`, worded. Not for what continues another prompt."""
    return map(wording.prompt, make_contents(sketches, wording, *key, salt=salt))


def make_probe(
    sketches: Sketches | None, wording: Wording, num_tokens: int, *key: int, salt: int = 0
) -> Prompt:
    """A prompt for proving the cache cold: where there are enough ids, no prompt of `sketches` begins as it
    does (a chat template's head apart)."""
    vocabulary = wording.vocabulary
    alphabet = _alphabet(vocabulary, *key, salt=salt)
    content = TokenStream(vocabulary, *key, salt, _PROBE).draw(num_tokens)
    content[:1] = alphabet[min(_num_firsts(sketches), len(alphabet) - 1)]
    return wording.prompt(content)


def make_trial(
    sketches: Sketches, vocabulary: Vocabulary, *key: int, salts: Iterable[int] = (0,)
) -> TokenIds:
    """Two tokens that show whether a server knows the vocabulary: its highest id is the second. Where there
    are enough ids, no prompt of `sketches`, with any of the salts, begins with the first."""
    unused = vocabulary.ids
    for salt in salts:
        unused = unused[~np.isin(unused, _alphabet(vocabulary, *key, salt=salt)[: _num_firsts(sketches)])]
    return np.array([*unused[:1], vocabulary.ids[-1]], np.int32)


def _num_firsts(sketches: Sketches | None) -> int:
    """How many different first pieces there are."""
    if sketches is None:
        return 0
    firsts = sketches.starts[:-1]
    return int(sketches.trie.num_siblings[sketches.trie.nodes[firsts]].max())


def _num_telling(sketches: Sketches, vocabulary: Vocabulary) -> IntArray:
    """Tokens needed at the start of each piece to tell it from its siblings, shape (m,): 1 where there are
    enough ids."""
    siblings = sketches.trie.num_siblings[sketches.trie.nodes]
    digits, combinations = np.ones(len(siblings), np.int64), len(vocabulary)
    while (few := combinations < siblings).any():
        if len(vocabulary) < 2:
            raise ConfigError(f"{int(siblings.max()):,} prompts cannot differ: {vocabulary.describe()}")
        digits[few] += 1
        combinations *= len(vocabulary)
    return digits


def _alphabet(vocabulary: Vocabulary, *key: int, salt: int) -> TokenIds:
    """All ids in random order: a piece's rank among its siblings is spelt with them."""
    return TokenStream(vocabulary, *key, salt, _FIRSTS).distinct(len(vocabulary), "prompts")


def _spell(number: int, alphabet: TokenIds, num_digits: int) -> TokenIds:
    """`number` in base `len(alphabet)`, its fastest digit first, so that few prompts share a first token."""
    digits = []
    for _ in range(num_digits):
        number, digit = divmod(number, len(alphabet))
        digits.append(digit)
    return alphabet[digits]


def _split(stream: TokenStream, sizes: IntArray) -> list[TokenIds]:
    """One after another from the stream, drawn at once."""
    return np.split(stream.draw(int(sizes.sum())), np.cumsum(sizes)[:-1]) if len(sizes) else []


class _Blocks:
    """Pieces that may stand in several prompts, by key; the last ones used are kept."""

    def __init__(self, vocabulary: Vocabulary, key: tuple[int, ...]) -> None:
        self._vocabulary = vocabulary
        self._key = key
        self._kept: OrderedDict[int, TokenIds] = OrderedDict()
        self._num_kept = 0

    def take(self, key: int, size: int) -> TokenIds:
        """A copy of its first `size` tokens."""
        block = self._kept.pop(key, None)
        if block is None or len(block) < size:
            self._num_kept -= 0 if block is None else len(block)
            block = TokenStream(self._vocabulary, *self._key, key).draw(size)
            self._num_kept += size
        self._kept[key] = block
        while self._num_kept > _KEPT_TOKENS and len(self._kept) > 1:
            self._num_kept -= len(self._kept.popitem(last=False)[1])
        return block[:size].copy()
