"""How token ids are put into a request so that the server sees exactly those: as ids, or as chat text.

Owns what the server will see around the content (a chat template's head and tail) and the proof that text
becomes the intended tokens. Knows no workload: it words whatever content it is given.

Invariant: a Prompt's `token_ids` are what the server's cache will be asked about, template included; where
that cannot be proven there is a ConfigError, not a Prompt.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from prefixlab.bench.workloads.tokens import TokenStream, Vocabulary
from prefixlab.core.block_hash import TokenIds, as_token_ids
from prefixlab.core.errors import ConfigError
from prefixlab.core.seams import Tokenizer
from prefixlab.core.target import TargetRequest

NUM_PROOF_ROUNDS = 8
PIECE = 8
"""Words read back together while looking for those that fuse: only the first misreading of each is found."""
NUM_SUFFICIENT_UNITS = 512
# A leading space keeps a word apart from the one before it in byte-level BPE; others add it themselves.
_UNIT_PATTERNS = (re.compile(r" [A-Za-z]{2,}"), re.compile(r"[A-Za-z]{2,}"))


@dataclass(frozen=True, eq=False, slots=True)
class Prompt:
    """Token ids as the server will see them, shape (n,), int32, and the text that makes them so, if any."""

    token_ids: TokenIds
    text: str | None = None

    def __len__(self) -> int:
        return len(self.token_ids)

    def request(
        self,
        request_id: str,
        max_new_tokens: int,
        *,
        chat: bool,
        ignore_eos: bool,
        extra_body: dict[str, Any],
    ) -> TargetRequest:
        """`chat`: text goes as a message."""
        messages = None if self.text is None or not chat else ({"role": "user", "content": self.text},)
        return TargetRequest(
            request_id=request_id,
            max_new_tokens=max_new_tokens,
            prompt_token_ids=self.token_ids if self.text is None else None,
            prompt_text=None if chat else self.text,
            messages=messages,
            ignore_eos=ignore_eos,
            extra_body=extra_body,
        )


class Wording(Protocol):
    """Puts content into words the server takes.

    Attributes:
        vocabulary: ids that content may be made of.
        num_head_tokens: tokens the server sees before the content, the same for every prompt.
        num_tail_tokens: tokens it sees after.
        is_exact: the server sees exactly the content's tokens; else about as many.
    """

    vocabulary: Vocabulary
    num_head_tokens: int
    num_tail_tokens: int

    @property
    def is_exact(self) -> bool: ...

    def prompt(self, content: TokenIds) -> Prompt: ...


class IdWording:
    """Token ids are sent as they are (`/generate`, `/v1/completions`)."""

    is_exact = True
    num_head_tokens = 0
    num_tail_tokens = 0

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary

    def prompt(self, content: TokenIds) -> Prompt:
        return Prompt(content)


class ChatWording:
    """Content goes as the text of one user message; the server's template and tokenizer make tokens of it.

    Raises ConfigError at construction when the tokenizer has no words that stay whole next to one another, or
    its template does something to the text; at `prompt` when one prompt does not survive the round trip.
    """

    is_exact = True

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        units = _stable_units(tokenizer)
        sample = units.ids[: len(units) // 2 * 2].reshape(2, -1)[:, :16]
        first, second = (self._render(content)[1] for content in sample)
        self.num_head_tokens = common_prefix(first, second)
        self.num_tail_tokens = common_prefix(first[::-1], second[::-1])
        self._head = first[: self.num_head_tokens]
        self._tail = first[len(first) - self.num_tail_tokens :]
        # The warm-up prompt continues with the tail where the others continue with their suffix.
        self.vocabulary = units.without(self._tail[:1].tolist())
        self.prompt(sample[0])

    def prompt(self, content: TokenIds) -> Prompt:
        text, token_ids = self._render(content)
        intended = np.concatenate((self._head, content, self._tail))
        if not np.array_equal(token_ids, intended):
            place = common_prefix(token_ids, intended)
            raise ConfigError(
                f"chat text does not survive the tokenizer: token {place} of {len(intended)} should be "
                f"{intended[place : place + 3].tolist()} and would become "
                f"{token_ids[place : place + 3].tolist()}; use an API that takes token ids"
            )
        return Prompt(token_ids, text)

    def _render(self, content: TokenIds) -> tuple[str, TokenIds]:
        text = self._tokenizer.decode(content.tolist())
        rendered = self._tokenizer.apply_chat_template([{"role": "user", "content": text}])
        return text, as_token_ids(self._tokenizer.encode(rendered))


def require_exact(wording: Wording) -> None:
    """For workloads that mean exact tokens. Raises ConfigError where the server may see others."""
    if not wording.is_exact:
        raise ConfigError(
            "chat takes text, and without the model's tokenizer nobody knows which tokens it becomes: "
            "give --tokenizer, or use a backend that takes token ids"
        )


def common_prefix(left: TokenIds, right: TokenIds) -> int:
    """How many leading tokens two sequences share."""
    length = min(len(left), len(right))
    differing = np.flatnonzero(left[:length] != right[:length])
    return int(differing[0]) if len(differing) else length


def _stable_units(tokenizer: Tokenizer) -> Vocabulary:
    """Ids whose texts, written one after another in any order, are read back as those ids.

    Joins all words in several random orders and drops those found beside a misreading. That finds what fuses
    often; what fuses rarely is found when a prompt holds it, for every prompt is proven by itself.
    """
    best = Vocabulary(as_token_ids([]), "")
    for pattern in _UNIT_PATTERNS:
        units = [
            token
            for token in range(tokenizer.vocab_size)
            if pattern.fullmatch(text := tokenizer.decode([token])) and tokenizer.encode(text) == [token]
        ]
        for round_number in range(NUM_PROOF_ROUNDS):
            vocabulary = Vocabulary(as_token_ids(units), "candidates")
            misread = _misread(tokenizer, TokenStream(vocabulary, round_number).distinct(len(units), "words"))
            units = [token for token in units if token not in misread]
        best = max(
            best, Vocabulary(as_token_ids(units), "words that stay whole next to one another"), key=len
        )
        if len(best) >= NUM_SUFFICIENT_UNITS:
            return best
    if len(best) < 2:
        raise ConfigError(
            "this tokenizer offers no words that stay whole next to one another, so chat text cannot carry "
            "exact tokens; use an API that takes token ids (bench serve and sweep also send words of any "
            "length, where no --tokenizer is given)"
        )
    return best


def _misread(tokenizer: Tokenizer, order: TokenIds) -> set[int]:
    """Of `order`, the ids around which reading back its text first goes astray, piece by piece."""
    misread: set[int] = set()
    for start in range(0, len(order), PIECE):
        piece = order[start : start + PIECE]
        back = as_token_ids(tokenizer.encode(tokenizer.decode(piece.tolist())))
        if not np.array_equal(back, piece):
            place = common_prefix(back, piece)
            misread |= set(piece[max(0, place - 1) : place + 2].tolist())
    return misread
