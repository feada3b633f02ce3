"""`POST /v1/chat/completions`: a conversation through the model's template, whole or as a stream.

Owns the body's and the answer's types and how choices are shown. The first event of a choice brings the role
together with its first text: a role alone would look like a token to whoever times the stream.

Invariant: the contents of a choice's events, joined, are the content of the whole answer.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from prefixlab.core.batch import TokenLogprobs
from prefixlab.core.block_hash import TokenIds
from prefixlab.core.errors import InvalidRequestError
from prefixlab.core.sampling_params import SamplingParams
from prefixlab.server.api import known_fields
from prefixlab.server.api.body import convert, json_response, read_json
from prefixlab.server.api.logprobs import ChatLogprobs, chat_logprobs
from prefixlab.server.api.openai import (
    MAX_LOGPROBS,
    OpenAIRequest,
    StreamOptions,
    Usage,
    asks_of,
    check_body,
    finish_reason,
    sampling_of,
)
from prefixlab.server.api.prompts import encode, make_call, new_id
from prefixlab.server.api.stream import EventStream, answer
from prefixlab.server.api.view import ChoiceView, StreamUsage
from prefixlab.server.calls import Choice
from prefixlab.server.worker import Worker


class TextPart(Struct, kw_only=True, forbid_unknown_fields=True):
    type: Literal["text"]
    text: str


class ChatMessage(Struct, kw_only=True, forbid_unknown_fields=True):
    """Text only. `developer` is OpenAI's newer name for `system`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] | None = None
    name: str | None = None


class ChatRequest(OpenAIRequest, kw_only=True, forbid_unknown_fields=True):
    """Without a limit, the answer may use what the prompt leaves of the model's context."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None


class AnswerMessage(Struct, kw_only=True):
    content: str
    role: str = "assistant"
    refusal: None = None


class ChatChoice(Struct, kw_only=True):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None


class ChatCompletion(Struct, kw_only=True):
    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    object: str = "chat.completion"


class Delta(Struct, kw_only=True):
    content: str
    role: str | UnsetType = UNSET


class ChunkChoice(Struct, kw_only=True):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: str | None


class ChatCompletionChunk(Struct, kw_only=True):
    """`usage` is there if the stream was asked for it, and null before the last event."""

    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: StreamUsage = UNSET
    object: str = "chat.completion.chunk"


_INSIDE: dict[str, type[Struct]] = {
    known_fields.STREAM_OPTIONS: StreamOptions,
    known_fields.MESSAGE: ChatMessage,
}


async def chat_completions(request: Request) -> Response:
    worker: Worker = request.app.state.worker
    given = await read_json(request, worker.config.max_body_bytes)
    body = convert(given, ChatRequest, known_fields.CHAT, _INSIDE)
    check_body(worker, body)
    prompt = worker.tokenizer.apply_chat_template([_template_message(one) for one in body.messages])
    token_ids = await encode(worker, prompt, "messages")
    rid = body.rid or new_id("chatcmpl-")
    asks = asks_of(body, rid, [(token_ids, _sampling(worker, body, token_ids))])
    call = make_call(worker, rid, asks, stream=bool(body.stream))
    view = _View(worker, body, rid, call.choices)
    if body.stream:
        return EventStream(worker, call, view.events)
    return json_response(view.response(await answer(request, worker, call)))


def _template_message(message: ChatMessage) -> dict[str, Any]:
    content = message.content
    if isinstance(content, list):
        content = "\n".join(part.text for part in content)
    role = "system" if message.role == "developer" else message.role
    return {"role": role, "content": content or ""} | ({"name": message.name} if message.name else {})


def _sampling(worker: Worker, body: ChatRequest, token_ids: TokenIds) -> SamplingParams:
    limits = {limit for limit in (body.max_completion_tokens, body.max_tokens) if limit is not None}
    if len(limits) > 1:
        raise InvalidRequestError("max_tokens and max_completion_tokens differ", "max_tokens")
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequestError("top_logprobs needs logprobs", "top_logprobs")
    return sampling_of(
        worker,
        body,
        max_tokens=limits.pop() if limits else max(1, worker.max_request_tokens - len(token_ids)),
        max_tokens_name="max_completion_tokens",
        num_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        logprobs_name="top_logprobs",
    )


class _View(ChoiceView):
    """Messages, or pieces of them."""

    def __init__(self, worker: Worker, body: ChatRequest, rid: str, choices: list[Choice]) -> None:
        super().__init__(worker, body, rid, choices)
        self._with_logprobs = bool(body.logprobs)

    def response(self, choices: list[Choice]) -> ChatCompletion:
        shown = [
            ChatChoice(
                index=choice.index,
                message=AnswerMessage(content=choice.text),
                logprobs=self._logprobs(choice.logprobs),
                finish_reason=finish_reason(choice),
            )
            for choice in choices
        ]
        return ChatCompletion(
            id=self.rid,
            created=self.created,
            model=self.worker.model_name,
            choices=shown,
            usage=self.usage(),
        )

    def chunk(self, choice: Choice | None, usage: StreamUsage) -> ChatCompletionChunk:
        return ChatCompletionChunk(
            id=self.rid,
            created=self.created,
            model=self.worker.model_name,
            choices=[] if choice is None else [self._piece(choice)],
            usage=usage,
        )

    def _piece(self, choice: Choice) -> ChunkChoice:
        is_first, text, entries, _ = self.unseen(choice)
        return ChunkChoice(
            index=choice.index,
            delta=Delta(content=text, role="assistant" if is_first else UNSET),
            logprobs=self._logprobs(entries),
            finish_reason=finish_reason(choice),
        )

    def _logprobs(self, entries: list[TokenLogprobs]) -> ChatLogprobs | None:
        return chat_logprobs(entries, self.text_of) if self._with_logprobs else None
