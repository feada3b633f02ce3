"""What completions and chat share: the body's common fields, usage, model names, and `/v1/models`.

Owns the translation of OpenAI's names (and vLLM's and SGLang's additions to them) to ours.

Invariant: `usage.prompt_tokens_details.cached_tokens` is always a number, and at most `prompt_tokens`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from prefixlab.core.block_hash import Namespace, TokenIds
from prefixlab.core.errors import InvalidRequestError, ModelNotFoundError
from prefixlab.core.sampling_params import SamplingParams
from prefixlab.server.api.body import json_response
from prefixlab.server.api.prompts import (
    Ask,
    StopIds,
    StopString,
    StopStrings,
    as_tuple,
    check_extras,
    ids_of,
    sampling_from,
)
from prefixlab.server.calls import Choice
from prefixlab.server.worker import Worker

MAX_LOGPROBS = 20


class StreamOptions(Struct, kw_only=True, forbid_unknown_fields=True):
    """`include_usage`: a last event with usage. `continuous_usage_stats` (vLLM, SGLang): in every event."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class OpenAIRequest(Struct, kw_only=True, forbid_unknown_fields=True):
    """Fields both APIs have. Null and absent mean the default. After `stream_options`: vLLM's and SGLang's
    additions, then `force_miss`, which is ours."""

    model: str | None = None
    temperature: Annotated[float, Meta(ge=0)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    seed: int | None = None
    stop: StopString | StopStrings | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    top_k: Annotated[int, Meta(ge=-1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=2)] | None = None
    min_tokens: Annotated[int, Meta(ge=0)] | None = None
    stop_token_ids: StopIds | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    extra_key: str | None = None
    cache_salt: str | None = None
    priority: int | None = None
    rid: str | None = None

    force_miss: bool | None = None


class PromptTokensDetails(Struct):
    cached_tokens: int


class Usage(Struct, kw_only=True):
    """Prompts are counted once each, however many choices were made of them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class Index(Struct, kw_only=True):
    """What `/v1` answers."""

    model: str
    endpoints: list[str]


class Model(Struct, kw_only=True):
    """`max_model_len` is vLLM's and SGLang's addition."""

    id: str
    created: int
    max_model_len: int
    object: str = "model"
    owned_by: str = "prefixlab"


class ModelList(Struct, kw_only=True):
    data: list[Model]
    object: str = "list"


def check_body(worker: Worker, body: OpenAIRequest) -> None:
    """Raises what is wrong with the fields both APIs have."""
    if body.model is not None and body.model != worker.model_name:
        raise ModelNotFoundError(f"this server serves {worker.model_name!r}, not {body.model!r}", "model")
    if body.stream_options is not None and not body.stream:
        raise InvalidRequestError("stream_options is only allowed with stream", "stream_options")
    check_extras(worker, force_miss=bool(body.force_miss), priority=body.priority or 0)


def sampling_of(
    worker: Worker,
    body: OpenAIRequest,
    *,
    max_tokens: int,
    max_tokens_name: str,
    num_logprobs: int | None,
    logprobs_name: str,
) -> SamplingParams:
    """Validated parameters; errors name fields as the client spelt them."""
    if body.return_tokens_as_token_ids and num_logprobs is None:
        raise InvalidRequestError("return_tokens_as_token_ids needs logprobs", "return_tokens_as_token_ids")
    values: dict[str, Any] = {
        "max_new_tokens": max_tokens,
        "min_new_tokens": body.min_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": -1 if body.top_k == 0 else body.top_k,  # vLLM spells "off" as 0 too
        "min_p": body.min_p,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "repetition_penalty": body.repetition_penalty,
        "seed": body.seed,
        "stop": as_tuple(body.stop),
        "stop_token_ids": as_tuple(body.stop_token_ids),
        "ignore_eos": body.ignore_eos,
        "skip_special_tokens": body.skip_special_tokens,
        "num_logprobs": num_logprobs,
    }
    spelling = {
        "max_new_tokens": max_tokens_name,
        "min_new_tokens": "min_tokens",
        "num_logprobs": logprobs_name,
    }
    return sampling_from(worker, values, spelling)


def asks_of(
    body: OpenAIRequest,
    rid: str,
    prompts: Sequence[tuple[TokenIds, SamplingParams]],
    *,
    return_prompt_logprobs: bool = False,
) -> list[Ask]:
    """What the body asks of each prompt."""
    return [
        Ask(
            rid=request_id,
            token_ids=token_ids,
            sampling=sampling,
            num_choices=body.n or 1,
            namespace=Namespace(body.extra_key, body.cache_salt),
            priority=body.priority or 0,
            force_miss=bool(body.force_miss),
            return_prompt_logprobs=return_prompt_logprobs,
        )
        for request_id, (token_ids, sampling) in zip(ids_of(rid, len(prompts)), prompts, strict=True)
    ]


def usage_of(choices: Iterable[Choice], choices_per_prompt: int) -> Usage:
    """Usage of a call so far. A prompt's cached tokens are those its first choice found."""
    choices = list(choices)
    firsts = choices[::choices_per_prompt]
    num_prompt = sum(len(choice.prompt_token_ids) for choice in firsts)
    num_output = sum(len(choice.token_ids) for choice in choices)
    return Usage(
        prompt_tokens=num_prompt,
        completion_tokens=num_output,
        total_tokens=num_prompt + num_output,
        prompt_tokens_details=PromptTokensDetails(sum(choice.num_cached_tokens for choice in firsts)),
    )


def finish_reason(choice: Choice) -> str | None:
    return None if choice.ended is None else choice.ended.reason.value


async def list_models(request: Request) -> Response:
    return json_response(ModelList(data=[_model(request.app.state.worker)]))


async def get_model(request: Request) -> Response:
    worker: Worker = request.app.state.worker
    name = request.path_params["model"]
    if name != worker.model_name:
        raise ModelNotFoundError(f"this server serves {worker.model_name!r}, not {name!r}", "model")
    return json_response(_model(worker))


def _model(worker: Worker) -> Model:
    created = int(worker.started_unix_s)
    return Model(id=worker.model_name, created=created, max_model_len=worker.max_model_len)
