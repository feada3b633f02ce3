"""Token ids to text, while they are still coming: what may be shown now, and where a stop string ended it.

Owns the two reasons to hold text back: bytes that are not a whole character yet, and text that may still
become a stop string. Knows no request; the server's loop and the offline LLM feed it. A token that ended a
request as a stop id is not fed: it belongs to `output_token_ids`, not to the text.

Assumes of a tokenizer that more tokens only add text, apart from trailing U+FFFD that the next tokens may
turn into a character. Byte-level vocabularies are like that; byte-fallback ones (Llama 2, Mistral 0.1) too,
as long as the model spells whole characters.

Invariant: without stop strings, everything `feed` and `finish` returned, joined, is the text of all tokens at
once, however they were grouped into calls.
"""

from __future__ import annotations

from collections.abc import Sequence

from prefixlab.core.sampling_params import SamplingParams
from prefixlab.core.seams import Tokenizer

REPLACEMENT = "\ufffd"
MAX_PENDING = 3
"""A character has four bytes at most, so three tokens can wait for the rest of one. Byte-level vocabularies
show them as one U+FFFD, byte-fallback ones as one each (and all bytes next to them as well)."""

_WINDOW = 24
"""Tokens decoded again at each call, before the window is cut."""


class IncrementalDecoder:
    """The text of one request's output.

    Args:
        tokenizer: turns ids into text.
        stop: strings that end the text; the one completed first counts, the longest of those completed by
            the same character. It and what follows it are never returned.
        num_unchecked_tokens: leading tokens whose text cannot hold a stop (`min_new_tokens`).
        skip_special_tokens: whether special tokens have no text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        stop: Sequence[str] = (),
        num_unchecked_tokens: int = 0,
        skip_special_tokens: bool = True,
    ) -> None:
        self.matched_stop: str | None = None
        """The stop string that was found. From then on no call returns text."""
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._num_unchecked_tokens = num_unchecked_tokens if stop else 0
        self._skip_special_tokens = skip_special_tokens
        # The last tokens, how much of their text was taken, and how many of them may be half a character.
        self._window: list[int] = []
        self._num_taken = 0
        self._num_pending_tokens = 0
        self._window_limit = _WINDOW
        # Whole characters that may still be the beginning of a stop string.
        self._held = ""

    @classmethod
    def for_request(cls, tokenizer: Tokenizer, sampling: SamplingParams) -> IncrementalDecoder:
        """The decoder of a request: its stop strings count from the token that may be its last."""
        return cls(
            tokenizer,
            stop=sampling.stop,
            num_unchecked_tokens=max(0, sampling.min_new_tokens - 1),
            skip_special_tokens=sampling.skip_special_tokens,
        )

    def feed(self, token_ids: Sequence[int]) -> str:
        """Take the next tokens; return the text that is certain now (often empty, never half a character)."""
        released = ""
        for token_id in token_ids:
            if self.matched_stop is not None:
                break
            new = self._take(token_id)
            if self._num_unchecked_tokens > 0:
                self._num_unchecked_tokens -= 1
                released += new
            else:
                released += self._before_stop(new)
        return released

    def finish(self) -> str:
        """Return what was held back, now that nothing follows; an unfinished character shows as U+FFFD."""
        if self.matched_stop is not None:
            return ""
        rest = self._text(self._window)[self._num_taken :]
        self._num_taken += len(rest)
        text = self._before_stop(rest) + self._held
        self._held = ""
        return text

    def _text(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=self._skip_special_tokens)

    def _take(self, token_id: int) -> str:
        """Append a token; return the whole characters it completes."""
        self._window.append(token_id)
        text = self._text(self._window)
        end = len(text)
        if not text.endswith(REPLACEMENT):
            self._num_pending_tokens = 0
        else:
            self._num_pending_tokens += 1
            end = len(text.rstrip(REPLACEMENT))
            if self._num_pending_tokens > MAX_PENDING:
                # Not one character in the making: bytes that never become one are shown as they are.
                end = max(end, len(text) - MAX_PENDING)
        end = max(end, self._num_taken)
        new = text[self._num_taken : end]
        self._num_taken = end
        undecided = 0 < self._num_pending_tokens <= MAX_PENDING
        if len(self._window) >= self._window_limit and not undecided:
            self._cut_window(text)
        return new

    def _cut_window(self, text: str) -> None:
        """Forget leading tokens, wherever that cannot change what later tokens look like.

        A cut is safe where the texts of both sides add up to the whole: it splits no character. Text already
        taken must remain, since some vocabularies drop the space in front of the first visible token.
        """
        for cut in range(len(self._window) - MAX_PENDING - 1, 0, -1):
            tail = self._text(self._window[cut:])
            num_dropped = len(text) - len(tail)
            if num_dropped >= self._num_taken or not text.endswith(tail):
                continue
            head = self._text(self._window[:cut])
            if text == head + tail or text == head + " " + tail:
                del self._window[:cut]
                self._num_taken -= num_dropped
                self._window_limit = _WINDOW
                return
        if not text and not self._text(self._window * 2):
            # Special tokens only. (Twice, since a lone space may have no text as the first token.)
            self._window.clear()
        else:
            self._window_limit = 2 * len(self._window)

    def _before_stop(self, new: str) -> str:
        """Append whole characters; return what can no longer become a stop string."""
        if not self._stop:
            return new
        text = self._held + new
        found = [(start + len(stop), start, stop) for stop in self._stop if (start := text.find(stop)) >= 0]
        if found:
            _, start, self.matched_stop = min(found)
            self._held = ""
            return text[:start]
        num_held = max(_longest_suffix_that_begins(stop, text) for stop in self._stop)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]


def _longest_suffix_that_begins(stop: str, text: str) -> int:
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
