"""`POST /v1/completions`: text or token ids, one prompt or many, whole or as a stream.

Owns the body's and the answer's types and how choices are shown. A stream has one event per choice and engine
step, also where a token has no text yet, so arrival times are those of tokens.

Invariant: the texts of a choice's events, joined, are the text of the whole answer.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from prefixlab.core.batch import TokenLogprobs
from prefixlab.server.api import known_fields
from prefixlab.server.api.body import convert, json_response, read_json
from prefixlab.server.api.logprobs import CompletionLogprobs, completion_logprobs
from prefixlab.server.api.openai import (
    MAX_LOGPROBS,
    OpenAIRequest,
    StreamOptions,
    asks_of,
    check_body,
    finish_reason,
    sampling_of,
)
from prefixlab.server.api.prompts import make_call, new_id, split_prompt, to_token_ids
from prefixlab.server.api.stream import EventStream, answer
from prefixlab.server.api.view import ChoiceView, StreamUsage
from prefixlab.server.calls import Choice
from prefixlab.server.worker import Worker

DEFAULT_MAX_TOKENS = 16
"""OpenAI's."""

_INSIDE: dict[str, type[Struct]] = {known_fields.STREAM_OPTIONS: StreamOptions}


class CompletionRequest(OpenAIRequest, kw_only=True, forbid_unknown_fields=True):
    """`prompt` is a text, texts, token ids, or lists of token ids; never a mixture. `return_token_ids` (vLLM,
    SGLang) names the tokens that were generated; the prompt's are not repeated."""

    prompt: str | list[str | int | list[int]]
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    return_token_ids: bool | None = None


class CompletionChoice(Struct, kw_only=True):
    """`token_ids`, if asked for: the generated tokens; in a stream, those that are new."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    token_ids: list[int] | UnsetType = UNSET


class Completion(Struct, kw_only=True):
    """An answer, or one event of its stream: `usage` is there if the stream was asked for it, and null
    before the last event."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: StreamUsage = UNSET
    object: str = "text_completion"


async def completions(request: Request) -> Response:
    worker: Worker = request.app.state.worker
    given = await read_json(request, worker.config.max_body_bytes)
    body = convert(given, CompletionRequest, known_fields.COMPLETIONS, _INSIDE)
    check_body(worker, body)
    sampling = sampling_of(
        worker,
        body,
        max_tokens=DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens,
        max_tokens_name="max_tokens",
        num_logprobs=body.logprobs,
        logprobs_name="logprobs",
    )
    texts = split_prompt(body.prompt, "prompt")
    prompts = [(await to_token_ids(worker, text, "prompt"), sampling) for text in texts]
    rid = body.rid or new_id("cmpl-")
    wants_prompt_logprobs = bool(body.echo) and body.logprobs is not None
    asks = asks_of(body, rid, prompts, return_prompt_logprobs=wants_prompt_logprobs)
    call = make_call(worker, rid, asks, stream=bool(body.stream))
    view = _View(worker, body, rid, texts, call.choices)
    if body.stream:
        return EventStream(worker, call, view.events)
    return json_response(view.response(await answer(request, worker, call)))


class _View(ChoiceView):
    """Text, after the prompt's own if it is to be echoed."""

    def __init__(
        self,
        worker: Worker,
        body: CompletionRequest,
        rid: str,
        prompts: list[str | list[int]],
        choices: list[Choice],
    ) -> None:
        super().__init__(worker, body, rid, choices)
        self._prompts = prompts
        self._echo = bool(body.echo)
        self._with_logprobs = body.logprobs is not None
        self._with_token_ids = bool(body.return_token_ids)
        self._next_offset = [0] * len(choices)

    def response(self, choices: list[Choice]) -> Completion:
        return self._completion([self._choice(choice) for choice in choices], self.usage())

    def chunk(self, choice: Choice | None, usage: StreamUsage) -> Completion:
        return self._completion([] if choice is None else [self._choice(choice)], usage)

    def _completion(self, choices: list[CompletionChoice], usage: StreamUsage) -> Completion:
        return Completion(
            id=self.rid, created=self.created, model=self.worker.model_name, choices=choices, usage=usage
        )

    def _choice(self, choice: Choice) -> CompletionChoice:
        is_first, text, entries, token_ids = self.unseen(choice)
        if is_first and self._echo:
            text = self._prompt_text(choice) + text
            if choice.started is not None:
                entries = choice.started.prompt_logprobs + entries
        return CompletionChoice(
            index=choice.index,
            text=text,
            logprobs=self._logprobs(choice, entries) if self._with_logprobs else None,
            finish_reason=finish_reason(choice),
            token_ids=token_ids if self._with_token_ids else UNSET,
        )

    def _logprobs(self, choice: Choice, entries: list[TokenLogprobs]) -> CompletionLogprobs:
        shown = completion_logprobs(entries, self.text_of, self._next_offset[choice.index])
        self._next_offset[choice.index] += sum(map(len, shown.tokens))
        return shown

    def _prompt_text(self, choice: Choice) -> str:
        prompt = self._prompts[choice.index // self.choices_per_prompt]
        if isinstance(prompt, str):
            return prompt
        return self.worker.tokenizer.decode(prompt, skip_special_tokens=False)
