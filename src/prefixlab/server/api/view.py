"""How choices are shown by the OpenAI APIs: what is new since the last event, and where usage goes.

Owns what was shown so far; completions and chat own the shapes. Invariant: everything of a choice is shown
once, and usage ends the stream of a client that asked for it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from msgspec import UNSET, Struct, UnsetType

from prefixlab.core.batch import TokenLogprobs
from prefixlab.core.clock import wall_time_s
from prefixlab.server.api.body import event
from prefixlab.server.api.logprobs import TokenTexts
from prefixlab.server.api.openai import OpenAIRequest, StreamOptions, Usage, usage_of
from prefixlab.server.calls import Choice
from prefixlab.server.worker import Worker

StreamUsage = Usage | UnsetType | None
"""Absent unless the client asked; then null before the last event."""


class Unseen(NamedTuple):
    """What of a choice was not shown yet."""

    is_first: bool
    text: str
    logprobs: list[TokenLogprobs]
    token_ids: list[int]


class ChoiceView(ABC):
    """The choices of one call, as its body asked to see them."""

    def __init__(
        self,
        worker: Worker,
        body: OpenAIRequest,
        rid: str,
        choices: list[Choice],
    ) -> None:
        options = body.stream_options or StreamOptions()
        self.worker = worker
        self.rid = rid
        self.created = int(wall_time_s())
        self.text_of = TokenTexts(worker.tokenizer, as_ids=bool(body.return_tokens_as_token_ids))
        self.choices_per_prompt = body.n or 1
        self._choices = choices
        self._include_usage = bool(options.include_usage)
        self._continuous_usage = bool(options.continuous_usage_stats)
        self._num_shown: dict[int, tuple[int, int, int]] = {}  # characters, logprobs and tokens, by choice

    @abstractmethod
    def chunk(self, choice: Choice | None, usage: StreamUsage) -> Struct:
        """An event with what is new of `choice`; without any choice if None."""

    def events(self, changed: list[Choice], is_last: bool) -> bytes:
        """The events of one engine step."""
        usage: StreamUsage = None if self._include_usage else UNSET
        if self._continuous_usage:
            usage = self.usage()
        events = [event(self.chunk(choice, usage)) for choice in changed]
        if is_last and self._include_usage:
            events.append(event(self.chunk(None, self.usage())))
        return b"".join(events)

    def usage(self) -> Usage:
        """Of the whole call, so far."""
        return usage_of(self._choices, self.choices_per_prompt)

    def unseen(self, choice: Choice) -> Unseen:
        """What of `choice` was not shown yet; from now on it counts as shown."""
        shown = self._num_shown.get(choice.index)
        num_characters, num_logprobs, num_tokens = shown or (0, 0, 0)
        self._num_shown[choice.index] = (len(choice.text), len(choice.logprobs), len(choice.token_ids))
        return Unseen(
            shown is None,
            choice.text[num_characters:],
            choice.logprobs[num_logprobs:],
            choice.token_ids[num_tokens:],
        )
