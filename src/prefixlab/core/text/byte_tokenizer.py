"""The tokenizer of the built-in `tiny` model: bytes, a few special tokens, short words. It needs no file.

Ids 0 … 255 are bytes, the next ones special tokens, all further ones words of a leading space and lower-case
letters: a list of common English ones, then invented ones of one to three syllables, as many as the
vocabulary asks for. So text of random ids can be read, and every id of any dummy model has a text.

Invariants: `decode(encode(text)) == text` for all text that UTF-8 can spell, and `encode(decode(ids)) == ids`
for ids that are all words or special tokens (a space can only begin a word, so no two of them fuse).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice, product

from prefixlab.core.errors import ConfigError, InvalidRequestError

NUM_BYTES = 256
BOS, EOS, IM_START, IM_END = "<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (BOS, EOS, IM_START, IM_END)
FIRST_WORD_ID = NUM_BYTES + len(SPECIAL_TOKENS)
DEFAULT_VOCAB_SIZE = 4096

_COMMON_WORDS = (
    "the of and a to in is you that it he was for on are as with his they at be this have from or one "
    "had by word but not what all were we when your can said there use an each which she do how their "
    "if will up other about out many then them these so some her would make like him into time has look "
    "two more write go see number no way could people my than first water been call who oil its now "
    "find long down day did get come made may part over new sound take only little work know place year "
    "live me back give most very after thing our just name good sentence man think say great where help "
    "through much before line right too mean old any same tell boy follow came want show also around "
    "form three small set put end does another well large must"
)
_ONSETS = "b d f g h j k l m n p r s t v w z ch sh th"
_ROLES = ("system", "developer", "user", "assistant", "tool")


class ByteTokenizer:
    """A Tokenizer (core/seams.py) over `vocab_size` ids; ConfigError below 260."""

    def __init__(self, vocab_size: int = DEFAULT_VOCAB_SIZE) -> None:
        if vocab_size < FIRST_WORD_ID:
            raise ConfigError(
                f"the byte tokenizer needs a vocabulary of {FIRST_WORD_ID} or more, not {vocab_size}"
            )
        self._pieces = [bytes([value]) for value in range(NUM_BYTES)]
        self._pieces += [token.encode() for token in SPECIAL_TOKENS]
        self._pieces += islice(_words(), vocab_size - FIRST_WORD_ID)
        hidden = [b""] * len(SPECIAL_TOKENS)
        self._visible_pieces = self._pieces[:NUM_BYTES] + hidden + self._pieces[FIRST_WORD_ID:]
        self._word_ids = {piece: i for i, piece in enumerate(self._pieces) if i >= FIRST_WORD_ID}
        self._special_ids = {token: NUM_BYTES + i for i, token in enumerate(SPECIAL_TOKENS)}
        self._longest_word = max(map(len, self._word_ids), default=0)
        self._special_pattern = re.compile("(" + "|".join(map(re.escape, SPECIAL_TOKENS)) + ")")
        self._word_pattern = re.compile(rb" [a-z]+")

    @property
    def vocab_size(self) -> int:
        return len(self._pieces)

    @property
    def eos_token_ids(self) -> frozenset[int]:
        return frozenset({self._special_ids[EOS], self._special_ids[IM_END]})

    def encode(self, text: str) -> list[int]:
        """Longest words first, bytes for the rest.

        Raises:
            InvalidRequestError: a lone surrogate, which no bytes spell.
        """
        token_ids: list[int] = []
        for i, part in enumerate(self._special_pattern.split(text)):
            if i % 2:  # split with a group: every second part is a special token
                token_ids.append(self._special_ids[part])
                continue
            try:
                token_ids.extend(self._encode_bytes(part.encode()))
            except UnicodeEncodeError as error:
                raise InvalidRequestError(f"the text is not valid Unicode: {error.reason}") from None
        return token_ids

    def _encode_bytes(self, data: bytes) -> Iterator[int]:
        position = 0
        for match in self._word_pattern.finditer(data):
            start, end = match.span()
            for stop in range(min(end, start + self._longest_word), start + 1, -1):
                word_id = self._word_ids.get(data[start:stop])
                if word_id is not None:
                    yield from data[position:start]
                    yield word_id
                    position = stop
                    break
        yield from data[position:]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        pieces = self._visible_pieces if skip_special_tokens else self._pieces
        return b"".join([pieces[i] for i in token_ids]).decode("utf-8", "replace")

    def apply_chat_template(self, messages: Sequence[dict[str, object]]) -> str:
        """ChatML: `<|im_start|>role`, newline, content, `<|im_end|>`, newline; then the assistant's turn."""
        turns = [f"{IM_START}{_role(message)}\n{message_text(message)}{IM_END}\n" for message in messages]
        return "".join(turns) + f"{IM_START}assistant\n"


def _words() -> Iterator[bytes]:
    """Every word once, common ones first, without end in practice (a million invented ones)."""
    common = dict.fromkeys(_COMMON_WORDS.split())
    for word in common:
        yield b" " + word.encode()
    syllables = [onset + vowel for onset in _ONSETS.split() for vowel in "aeiou"]
    for num_syllables in (1, 2, 3):
        for parts in product(syllables, repeat=num_syllables):
            word = "".join(parts)
            if word not in common:
                yield b" " + word.encode()


def _role(message: dict[str, object]) -> str:
    role = message.get("role")
    if role not in _ROLES:
        raise InvalidRequestError(
            f"a message's role must be one of {', '.join(_ROLES)}, not {role!r}", "messages"
        )
    return str(role)


def message_text(message: dict[str, object]) -> str:
    """The text of a message's content: a string, or parts of type text, joined.

    Raises:
        InvalidRequestError: content of another kind (none at all is empty text in the assistant's turns).
    """
    content = message.get("content")
    if isinstance(content, str):
        return content
    if content is None and message.get("role") == "assistant":
        return ""
    if isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") == "text" for part in content
    ):
        return "".join(str(part.get("text", "")) for part in content)
    raise InvalidRequestError("a message's content must be text, or parts of type text", "messages")
