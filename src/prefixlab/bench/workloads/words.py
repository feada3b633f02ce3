"""Prompts of random English words, where an API takes only text and nobody gave us its tokenizer.

Owns the words. Each is one token in most vocabularies, so lengths come out about right; what they are the
server counts, and reports say that.

Invariant: the words are all different, so different ids make different texts.
"""

from __future__ import annotations

import numpy as np

from prefixlab.bench.workloads.tokens import Vocabulary
from prefixlab.bench.workloads.wording import Prompt
from prefixlab.core.block_hash import TokenIds
from prefixlab.core.seams import Tokenizer

_TEXT = (
    "the of and to in is you that it he was for on are as with his they at be this have from or one "
    "had by word but not what all were we when your can said there use an each which she do how their "
    "if will up other about out many then them these so some her would make like him into time has "
    "look two more write go see number no way could people my than first water been call who oil its "
    "now find long down day did get come made may part over new sound take only little work know "
    "place year live me back give most very after thing our just name good sentence man think say "
    "great where help through much before line right too mean old any same tell boy follow came want "
    "show also around form three small set put end does another well large must big even such because "
    "turn here why ask went men read need land different home us move try kind hand picture again "
    "change off play spell air away animal house point page letter mother answer found study still "
    "learn should world high every near add food between own below country plant last school father "
    "keep tree never start city earth eye light thought head under story saw left"
)
WORDS = _TEXT.split()


class WordWording:
    """Content is indices into WORDS. Lengths are only about right: see the module."""

    is_exact = False
    num_head_tokens = 0
    num_tail_tokens = 0

    def __init__(self) -> None:
        self.vocabulary = Vocabulary(
            np.arange(len(WORDS), dtype=np.int32), "words, about a token each: no tokenizer is given"
        )

    def prompt(self, content: TokenIds) -> Prompt:
        return Prompt(content, " ".join(WORDS[index] for index in content.tolist()))


class TextWording:
    """Content goes as the text it decodes to. Where tokens fuse, the server makes fewer or others of it."""

    is_exact = False
    num_head_tokens = 0
    num_tail_tokens = 0

    def __init__(self, tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
        self._tokenizer = tokenizer
        self.vocabulary = vocabulary

    def prompt(self, content: TokenIds) -> Prompt:
        return Prompt(content, self._tokenizer.decode(content.tolist()))
