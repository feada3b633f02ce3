"""Log-probabilities in OpenAI's two shapes. (The native one is in `native.py`.)

Invariant: one entry per token, in order; the token that was sampled is among the top ones listed by
completions, and only the likeliest are by chat, as OpenAI has it.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from prefixlab.core.batch import TokenLogprobs
from prefixlab.core.seams import Tokenizer
from prefixlab.core.text.incremental import REPLACEMENT


class CompletionLogprobs(Struct, kw_only=True):
    """Parallel lists. `token_logprobs` and `top_logprobs` are null for a prompt's first token."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class ChatTopLogprob(Struct, kw_only=True):
    """`bytes` is null where the token is not whole characters."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatTokenLogprob(Struct, kw_only=True):
    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[ChatTopLogprob]


class ChatLogprobs(Struct, kw_only=True):
    content: list[ChatTokenLogprob]
    refusal: None = None


class TokenTexts:
    """How single tokens are spelt: their text, or `token_id:7` (vLLM's return_tokens_as_token_ids)."""

    def __init__(self, tokenizer: Tokenizer, *, as_ids: bool) -> None:
        self._tokenizer = tokenizer
        self._as_ids = as_ids

    def __call__(self, token_id: int) -> str:
        if self._as_ids:
            return f"token_id:{token_id}"
        return self._tokenizer.decode([token_id], skip_special_tokens=False)


def completion_logprobs(
    entries: Sequence[TokenLogprobs], text_of: TokenTexts, offset: int
) -> CompletionLogprobs:
    """Args:
    offset: where the first token's text begins.
    """
    shown = CompletionLogprobs(text_offset=[], token_logprobs=[], tokens=[], top_logprobs=[])
    for entry in entries:
        token = text_of(entry.token_id)
        shown.text_offset.append(offset)
        shown.tokens.append(token)
        shown.token_logprobs.append(entry.logprob)
        shown.top_logprobs.append(_top_dict(entry, token, text_of))
        offset += len(token)
    return shown


def chat_logprobs(entries: Sequence[TokenLogprobs], text_of: TokenTexts) -> ChatLogprobs:
    content = []
    for entry in entries:
        assert entry.logprob is not None, "only a prompt's first token has no logprob"
        token = text_of(entry.token_id)
        top = [
            ChatTopLogprob(token=text, logprob=logprob, bytes=_bytes(text))
            for text, logprob in ((text_of(token_id), logprob) for token_id, logprob in entry.top)
        ]
        content.append(
            ChatTokenLogprob(token=token, logprob=entry.logprob, bytes=_bytes(token), top_logprobs=top)
        )
    return ChatLogprobs(content=content)


def _top_dict(entry: TokenLogprobs, token: str, text_of: TokenTexts) -> dict[str, float] | None:
    if entry.logprob is None:
        return None
    top: dict[str, float] = {}
    for token_id, logprob in entry.top:
        # Several half characters have one spelling: the likeliest keeps it.
        top.setdefault(text_of(token_id), logprob)
    top.setdefault(token, entry.logprob)
    return top


def _bytes(text: str) -> list[int] | None:
    return None if REPLACEMENT in text else list(text.encode())
