"""The APIs a server may speak, without I/O: a request as a JSON body, an event as a chunk.

Owns the field names of native `/generate` (SGLang's and ours), OpenAI completions and OpenAI chat. Opens no
socket, so a client that records first and parses later uses the same code.

Invariant: what a server did not say stays None; an error it put into the stream is raised, never passed on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from prefixlab.core.errors import ConfigError, TargetError
from prefixlab.core.target import Chunk, TargetRequest

QUOTE_LIMIT = 500
BAD_FINISH_REASONS = frozenset({"abort", "error", "timeout"})
"""Ways a server says, with status 200, that it gave up on a request."""


class Dialect(Protocol):
    """One API. Stateless: a chunk is read from its event alone."""

    path: str

    def body(self, request: TargetRequest, model: str | None) -> dict[str, Any]:
        """The request as plain JSON data. Raises ConfigError for a prompt this API cannot carry."""
        ...

    def read(self, payload: bytes, arrival_s: float) -> Chunk:
        """One event's payload (not `[DONE]`). Raises TargetError on an error event or on what is not one."""
        ...


class NativeDialect:
    """`POST /generate` of SGLang and prefixlab. Text and counts are totals so far, in every event."""

    path = "/generate"

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
        event = _event(payload)
        meta = event.get("meta_info")
        if not isinstance(meta, Mapping):
            raise TargetError(f"an event of /generate has no meta_info: {quote(payload)}")
        reason = meta.get("finish_reason")
        if isinstance(reason, Mapping):
            if reason.get("type") in BAD_FINISH_REASONS:
                raise TargetError(f"the server gave up: {reason.get('message') or reason}")
            reason = reason.get("type")
        num_output = _count(meta, "completion_tokens", payload)
        return Chunk(
            arrival_s=arrival_s,
            text=str(event.get("text") or ""),
            # An event before the first token (a server may send one per prefill chunk) carries none.
            carries_tokens=num_output > 0 if num_output is not None else bool(event.get("text")),
            num_output_tokens=num_output,
            num_prompt_tokens=_count(meta, "prompt_tokens", payload),
            num_cached_tokens=_count(meta, "cached_tokens", payload),
            finish_reason=reason if reason is None else str(reason),
        )


class CompletionsDialect:
    """OpenAI `POST /v1/completions`, prompt as token ids or text.

    `continuous_usage` asks for counts in every event (`stream_options.continuous_usage_stats` of vLLM and
    SGLang), so that tokens need not be guessed from text; servers that do not know the option refuse it.
    """

    path = "/v1/completions"

    def __init__(self, *, continuous_usage: bool = False) -> None:
        self._stream_options = {"include_usage": True}
        if continuous_usage:
            self._stream_options["continuous_usage_stats"] = True

    def body(self, request: TargetRequest, model: str | None) -> dict[str, Any]:
        if request.prompt_token_ids is not None:
            prompt: Any = request.prompt_token_ids.tolist()
        elif request.prompt_text is not None:
            prompt = request.prompt_text
        else:
            raise ConfigError("/v1/completions takes token ids or text, not messages")
        body = {"prompt": prompt, "max_tokens": request.max_new_tokens}
        return body | _openai_fields(request, model, self._stream_options) | request.extra_body

    def read(self, payload: bytes, arrival_s: float) -> Chunk:
        event = _event(payload)
        choice = _first_choice(event, payload)
        text = str(choice.get("text") or "") if choice is not None else ""
        reason = choice.get("finish_reason") if choice is not None else None
        # A token may decode to no text yet (half a character), so an event with a choice carries one; a bare
        # finish reason does not.
        carries = choice is not None and (bool(text) or reason is None)
        return _openai_chunk(event, payload, arrival_s, text, carries, reason)


class ChatDialect:
    """OpenAI `POST /v1/chat/completions`. Reasoning content counts as output: it is generated too."""

    path = "/v1/chat/completions"

    def __init__(self, *, continuous_usage: bool = False) -> None:
        self._stream_options = {"include_usage": True}
        if continuous_usage:
            self._stream_options["continuous_usage_stats"] = True

    def body(self, request: TargetRequest, model: str | None) -> dict[str, Any]:
        if request.messages is None:
            raise ConfigError("/v1/chat/completions takes messages, not token ids or bare text")
        body = {"messages": list(request.messages), "max_completion_tokens": request.max_new_tokens}
        return body | _openai_fields(request, model, self._stream_options) | request.extra_body

    def read(self, payload: bytes, arrival_s: float) -> Chunk:
        event = _event(payload)
        choice = _first_choice(event, payload)
        delta = choice.get("delta") if choice is not None else None
        delta = delta if isinstance(delta, Mapping) else {}
        text = str(delta.get("content") or "")
        hidden = delta.get("reasoning_content") or delta.get("reasoning") or delta.get("tool_calls")
        reason = choice.get("finish_reason") if choice is not None else None
        # The role-only event that opens a stream is not a token (it would make TTFT the time to the headers).
        return _openai_chunk(event, payload, arrival_s, text, bool(text or hidden), reason)


def _openai_fields(
    request: TargetRequest, model: str | None, stream_options: dict[str, bool]
) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "temperature": request.temperature,
        "stream": True,
        "stream_options": stream_options,
    }
    if model is not None:
        fields["model"] = model
    if request.ignore_eos:
        # Not an OpenAI field: left out rather than sent as false, so that a strict server is not refused.
        fields["ignore_eos"] = True
    return fields


def _openai_chunk(
    event: Mapping[str, Any], payload: bytes, arrival_s: float, text: str, carries: bool, reason: Any
) -> Chunk:
    if reason in BAD_FINISH_REASONS:
        raise TargetError(f"the server gave up: {quote(payload)}")
    usage = event.get("usage")
    usage = usage if isinstance(usage, Mapping) else {}
    details = usage.get("prompt_tokens_details")
    num_output = _count(usage, "completion_tokens", payload)
    return Chunk(
        arrival_s=arrival_s,
        text=text,
        # With counts in every event, the counts say what came: a half character is a token without text.
        carries_tokens=carries or bool(num_output and _has_choice(event)),
        num_output_tokens=num_output,
        num_prompt_tokens=_count(usage, "prompt_tokens", payload),
        num_cached_tokens=_count(details, "cached_tokens", payload) if isinstance(details, Mapping) else None,
        finish_reason=reason if reason is None else str(reason),
    )


def _has_choice(event: Mapping[str, Any]) -> bool:
    return bool(event.get("choices"))


def _first_choice(event: Mapping[str, Any], payload: bytes) -> Mapping[str, Any] | None:
    choices = event.get("choices")
    if not isinstance(choices, list):
        raise TargetError(f"an event has no choices: {quote(payload)}")
    if not choices:
        return None
    if not isinstance(choices[0], Mapping):
        raise TargetError(f"a choice is not an object: {quote(payload)}")
    return choices[0]


def _event(payload: bytes) -> dict[str, Any]:
    try:
        event = msgspec.json.decode(payload)
    except msgspec.DecodeError:
        raise TargetError(f"an event is not JSON: {quote(payload)}") from None
    if not isinstance(event, dict):
        raise TargetError(f"an event is not an object: {quote(payload)}")
    if event.get("error") or event.get("object") == "error":
        raise TargetError(f"the server reported an error in the stream: {quote(payload)}")
    return event


def _count(source: Mapping[str, Any], name: str, payload: bytes) -> int | None:
    value = source.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TargetError(f"{name} is not a count: {quote(payload)}")
    return value


def quote(payload: bytes) -> str:
    """A server's words, for a message: cut to a length people read."""
    text = payload.decode("utf-8", "replace").strip()
    return text if len(text) <= QUOTE_LIMIT else text[:QUOTE_LIMIT] + " …"
