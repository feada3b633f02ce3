"""The APIs a server may speak, without I/O: a request as a JSON body, an event as a chunk.

Owns the field names of native `/generate` (SGLang's and ours), OpenAI completions and OpenAI chat. Opens no
socket: a client that records first and parses later is told a name of `DIALECTS`. An answer that is not
streamed is read as one event.

Events are decoded into Structs that name only the fields used here: what else a server sends costs nothing.

Invariant: what a server did not say stays None; an error it put into the stream is raised, never passed on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Protocol, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from prefixlab.bench.records.record import Failure
from prefixlab.core.errors import ConfigError, TargetError
from prefixlab.core.target import Chunk, TargetRequest

QUOTE_LIMIT = 500
BAD_FINISH_REASONS = frozenset({"abort", "error", "timeout"})
"""Ways a server says, with status 200, that it gave up on a request."""


class AnswerError(TargetError):
    """An answer that is none; `failure` says in which way."""

    def __init__(self, message: str, failure: Failure) -> None:
        super().__init__(message)
        self.failure = failure


@dataclass(frozen=True, slots=True)
class Reply:
    """What was answered, for the next turn of its session to begin with.

    Attributes:
        token_ids: None where the server does not name all of them.
    """

    text: str = ""
    token_ids: Sequence[int] | None = None


class Dialect(Protocol):
    """One API. Stateless: a chunk is read from its event alone.

    Attributes:
        name: what `DIALECTS` calls it.
        path: where it lies on a server, from the base URL.
        names_tokens: fields of a body by which a server is asked to name the tokens it generates.
    """

    @property
    def name(self) -> str: ...

    path: str
    names_tokens: Mapping[str, Any]

    def body(self, request: TargetRequest, model: str | None) -> dict[str, Any]:
        """The request as plain JSON data. Raises ConfigError for a prompt this API cannot carry."""
        ...

    def read(self, payload: bytes, arrival_s: float) -> Chunk:
        """One event's payload (not `[DONE]`), or an answer that was not streamed.

        Raises:
            AnswerError: on an error event, or on what is no event of this API.
        """
        ...

    def reply(self, payloads: Sequence[bytes]) -> Reply:
        """What a whole answer says, whose events `read` takes all. Apart from it, as few answers are gone on
        from, and naming a token in every event would make reading each of them dearer."""
        ...


_Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


class _Event(msgspec.Struct):
    """What every API may say in place of an answer."""

    error: Any = None
    object: str | None = None


class _NativeFinish(msgspec.Struct):
    type: str | None = None
    message: str | None = None


class _NativeMeta(msgspec.Struct):
    prompt_tokens: _Count | None = None
    completion_tokens: _Count | None = None
    cached_tokens: _Count | None = None
    finish_reason: _NativeFinish | str | None = None


class _NativeEvent(_Event):
    text: str | None = None
    meta_info: _NativeMeta | UnsetType = UNSET


class _NativeReply(_Event):
    text: str | None = None
    output_ids: list[int] | None = None
    meta_info: _NativeMeta | None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: _Count | None = None


class _OutputDetails(msgspec.Struct):
    reasoning_tokens: _Count | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: _Count | None = None
    completion_tokens: _Count | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _OutputDetails | None = None


class _TextChoice(msgspec.Struct):
    text: str | None = None
    finish_reason: str | None = None


class _TextEvent(_Event):
    choices: list[_TextChoice] | UnsetType = UNSET
    usage: _Usage | None = None


class _TextReplyChoice(msgspec.Struct):
    text: str | None = None
    token_ids: list[int] | None = None


class _TextReply(_Event):
    choices: list[_TextReplyChoice] = []
    usage: _Usage | None = None


class _Message(msgspec.Struct):
    content: str | None = None
    role: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class _ChatChoice(msgspec.Struct):
    delta: _Message | None = None
    message: _Message | None = None
    finish_reason: str | None = None


class _ChatEvent(_Event):
    choices: list[_ChatChoice] | UnsetType = UNSET
    usage: _Usage | None = None


_NATIVE = msgspec.json.Decoder(_NativeEvent)
_TEXT = msgspec.json.Decoder(_TextEvent)
_CHAT = msgspec.json.Decoder(_ChatEvent)
_NATIVE_REPLY = msgspec.json.Decoder(_NativeReply)
_TEXT_REPLY = msgspec.json.Decoder(_TextReply)


class NativeDialect:
    """`POST /generate` of SGLang and prefixlab. Counts are totals so far, in every event; so are text and
    token ids, unless SGLang was started with --incremental-streaming-output."""

    name: ClassVar[str] = "native"
    path = "/generate"
    names_tokens: Mapping[str, Any] = {}
    """It does so unasked."""

    def body(self, request: TargetRequest, model: str | None) -> dict[str, Any]:
        body: dict[str, Any] = {
            "sampling_params": {
                "temperature": request.temperature,
                "max_new_tokens": request.max_new_tokens,
                "ignore_eos": request.ignore_eos,
            },
            "stream": True,
        }
        if request.prompt_token_ids is not None:
            body["input_ids"] = request.prompt_token_ids.tolist()
        elif request.prompt_text is not None:
            body["text"] = request.prompt_text
        else:
            raise ConfigError("/generate takes token ids or text, not messages")
        return body | request.extra_body

    def read(self, payload: bytes, arrival_s: float) -> Chunk:
        event = _decode(_NATIVE, payload)
        meta = event.meta_info
        if meta is UNSET:
            raise AnswerError(f"an event of /generate has no meta_info: {quote(payload)}", Failure.GARBAGE)
        reason = meta.finish_reason
        if isinstance(reason, _NativeFinish):
            if reason.type in BAD_FINISH_REASONS:
                words = reason.message or quote(payload)
                raise AnswerError(f"the server gave up: {words}", Failure.SERVER_ERROR)
            reason = reason.type
        num_output = meta.completion_tokens
        return Chunk(
            arrival_s,
            event.text or "",
            # An event before the first token (a server may send one per prefill chunk) carries none.
            num_output > 0 if num_output is not None else bool(event.text),
            num_output,
            meta.prompt_tokens,
            meta.cached_tokens,
            reason,
        )

    def reply(self, payloads: Sequence[bytes]) -> Reply:
        # The last event tells what the others are: all there is, where ids are totals; and only there are
        # ids and count of one moment (SGLang's list of ids goes on growing while an event waits to be sent).
        last = _decode(_NATIVE_REPLY, payloads[-1]) if payloads else None
        count = None if last is None or last.meta_info is None else last.meta_info.completion_tokens
        if last is None or count is None:
            return Reply() if last is None else Reply(last.text or "")
        if last.output_ids is not None and len(last.output_ids) == count:
            return Reply(last.text or "", last.output_ids)
        events = [_decode(_NATIVE_REPLY, payload) for payload in payloads]
        ids = _whole([token for event in events for token in event.output_ids or ()], count)
        return Reply(last.text or "" if ids is None else "".join(event.text or "" for event in events), ids)


class _OpenAiDialect:
    """What completions and chat share.

    `continuous_usage` asks for counts in every event (`stream_options.continuous_usage_stats` of vLLM and
    SGLang), so that tokens need not be guessed from text; servers that do not know the option refuse it.
    """

    _api: ClassVar[str]
    names_tokens: Mapping[str, Any] = {}

    def __init__(self, *, continuous_usage: bool = False) -> None:
        self.name = f"{self._api}-continuous" if continuous_usage else self._api
        self._stream_options = {"include_usage": True}
        if continuous_usage:
            self._stream_options["continuous_usage_stats"] = True

    def _fields(self, request: TargetRequest, model: str | None) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "temperature": request.temperature,
            "stream": True,
            "stream_options": self._stream_options,
        }
        if model is not None:
            fields["model"] = model
        if request.ignore_eos:
            # Not an OpenAI field: left out rather than sent as false, so that a strict server is not refused.
            fields["ignore_eos"] = True
        return fields


class CompletionsDialect(_OpenAiDialect):
    """OpenAI `POST /v1/completions`, prompt as token ids or text."""

    _api = "completions"
    path = "/v1/completions"
    names_tokens: Mapping[str, Any] = {"return_token_ids": True}
    """Of vLLM, SGLang and prefixlab. Each event has those that are new."""

    def body(self, request: TargetRequest, model: str | None) -> dict[str, Any]:
        if request.prompt_token_ids is not None:
            prompt: Any = request.prompt_token_ids.tolist()
        elif request.prompt_text is not None:
            prompt = request.prompt_text
        else:
            raise ConfigError("/v1/completions takes token ids or text, not messages")
        body = {"prompt": prompt, "max_tokens": request.max_new_tokens}
        return body | self._fields(request, model) | request.extra_body

    def read(self, payload: bytes, arrival_s: float) -> Chunk:
        event = _decode(_TEXT, payload)
        choice = _first(event.choices, payload)
        if choice is None:
            return _openai_chunk(event.usage, payload, arrival_s)
        text, reason = choice.text or "", choice.finish_reason
        # A token may decode to no text yet (half a character), so an event with a choice carries one; a bare
        # finish reason does not.
        return _openai_chunk(
            event.usage, payload, arrival_s, True, bool(text) or reason is None, text, reason
        )

    def reply(self, payloads: Sequence[bytes]) -> Reply:
        text: list[str] = []
        ids: list[int] = []
        count = None
        for payload in payloads:
            event = _decode(_TEXT_REPLY, payload)
            if event.usage is not None:
                count = event.usage.completion_tokens
            if event.choices:
                text.append(event.choices[0].text or "")
                ids += event.choices[0].token_ids or ()
        return Reply("".join(text), _whole(ids, count))


class ChatDialect(_OpenAiDialect):
    """OpenAI `POST /v1/chat/completions`. Reasoning is output, generated like the rest, and told apart."""

    _api = "chat"
    path = "/v1/chat/completions"

    def body(self, request: TargetRequest, model: str | None) -> dict[str, Any]:
        if request.messages is None:
            raise ConfigError("/v1/chat/completions takes messages, not token ids or bare text")
        body = {"messages": list(request.messages), "max_completion_tokens": request.max_new_tokens}
        return body | self._fields(request, model) | request.extra_body

    def read(self, payload: bytes, arrival_s: float) -> Chunk:
        event = _decode(_CHAT, payload)
        choice = _first(event.choices, payload)
        if choice is None:
            return _openai_chunk(event.usage, payload, arrival_s)
        said = choice.delta or choice.message or _SILENCE
        answers = bool(said.content or said.tool_calls)
        reasons = bool(said.reasoning_content or said.reasoning)
        # The event that opens a stream names a role, and is no token (it would make TTFT the time to the
        # headers). One in mid-stream whose text is empty is: half a character, say.
        silent = said.content == "" and said.role is None and choice.finish_reason is None
        return _openai_chunk(
            event.usage,
            payload,
            arrival_s,
            True,
            answers or reasons or silent,
            said.content or "",
            choice.finish_reason,
            reasons and not answers if answers or reasons else None,
        )

    def reply(self, payloads: Sequence[bytes]) -> Reply:
        """Without what was only thought: chat templates leave that out of a conversation's history."""
        said = []
        for payload in payloads:
            choice = _first(_decode(_CHAT, payload).choices, payload)
            if choice is not None:
                said.append((choice.delta or choice.message or _SILENCE).content or "")
        return Reply("".join(said))


_SILENCE = _Message()


def _openai_chunk(
    usage: _Usage | None,
    payload: bytes,
    arrival_s: float,
    has_choice: bool = False,
    carries: bool = False,
    text: str = "",
    reason: str | None = None,
    is_reasoning: bool | None = False,
) -> Chunk:
    if reason in BAD_FINISH_REASONS:
        raise AnswerError(f"the server gave up: {quote(payload)}", Failure.SERVER_ERROR)
    if usage is None:
        return Chunk(arrival_s, text, carries, None, None, None, reason, is_reasoning)
    num_output = usage.completion_tokens
    prompt, output = usage.prompt_tokens_details, usage.completion_tokens_details
    return Chunk(
        arrival_s,
        text,
        # With counts in every event, the counts say what came: a half character is a token without text.
        carries or bool(num_output and has_choice),
        num_output,
        usage.prompt_tokens,
        prompt.cached_tokens if prompt is not None else None,
        reason,
        is_reasoning,
        output.reasoning_tokens if output is not None else None,
    )


_E = TypeVar("_E", bound=_Event)
_T = TypeVar("_T")


def _whole(ids: list[int], count: int | None) -> list[int] | None:
    # None unless they are as many as the server counted: some would be missing.
    return ids if (bool(ids) if count is None else len(ids) == count) else None


def _decode(decoder: msgspec.json.Decoder[_E], payload: bytes) -> _E:
    try:
        event = decoder.decode(payload)
        if not event.error and event.object != "error":
            return event
        fault = None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        fault = error
    # An error event may differ in other fields too, so it is looked for before they are blamed.
    if fault is None or _reports_error(payload):
        words = f"the server reported an error in the stream: {quote(payload)}"
        raise AnswerError(words, Failure.SERVER_ERROR)
    if isinstance(fault, msgspec.ValidationError):
        raise AnswerError(f"not an event of this API ({fault}): {quote(payload)}", Failure.GARBAGE)
    raise AnswerError(f"an event is not JSON: {quote(payload)}", Failure.GARBAGE)


def _reports_error(payload: bytes) -> bool:
    try:
        event = msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return isinstance(event, dict) and bool(event.get("error") or event.get("object") == "error")


def _first(choices: list[_T] | UnsetType, payload: bytes) -> _T | None:
    if choices is UNSET:
        raise AnswerError(f"an event has no choices: {quote(payload)}", Failure.GARBAGE)
    return choices[0] if choices else None


def quote(payload: bytes) -> str:
    """A server's words, for a message: cut to a length people read."""
    text = payload.decode("utf-8", "replace").strip()
    return text if len(text) <= QUOTE_LIMIT else text[:QUOTE_LIMIT] + " …"


DIALECTS: dict[str, Callable[[], Dialect]] = {
    "native": NativeDialect,
    "completions": CompletionsDialect,
    "completions-continuous": lambda: CompletionsDialect(continuous_usage=True),
    "chat": ChatDialect,
    "chat-continuous": lambda: ChatDialect(continuous_usage=True),
}
"""By the names that jobs and reports use."""
