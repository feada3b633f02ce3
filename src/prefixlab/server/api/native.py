"""`POST /generate`: SGLang's native API, with our `force_miss`. Text and ids of an event are totals so far.

Owns the body's types, their translation to asks, and the answer's shape. A body with lists of prompts, or
`sampling_params.n` > 1, is a batch: its answer is a list, its events carry `index`.

Invariant: `meta_info.cached_tokens` is what first admission found, the same in every event of a request.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType
from msgspec.structs import asdict
from starlette.requests import Request
from starlette.responses import Response

from prefixlab.core.batch import TokenLogprobs
from prefixlab.core.block_hash import Namespace
from prefixlab.core.errors import InvalidRequestError
from prefixlab.core.request import FinishReason
from prefixlab.core.sampling_params import SamplingParams
from prefixlab.server.api import known_fields
from prefixlab.server.api.body import convert, event, json_response, read_json
from prefixlab.server.api.prompts import (
    Ask,
    StopIds,
    StopString,
    StopStrings,
    as_tuple,
    check_extras,
    ids_of,
    make_call,
    new_id,
    sampling_from,
    split_prompt,
    to_token_ids,
)
from prefixlab.server.api.stream import EventStream, answer
from prefixlab.server.calls import Choice
from prefixlab.server.metrics import TIERS
from prefixlab.server.worker import Worker

MAX_TOP_LOGPROBS = 20


class NativeSampling(Struct, kw_only=True, forbid_unknown_fields=True):
    """`sampling_params`. Null and absent mean the default; `stop` takes one string or many, `stop_token_ids`
    always a list."""

    max_new_tokens: Annotated[int, Meta(ge=1)] | None = None
    min_new_tokens: Annotated[int, Meta(ge=0)] | None = None
    temperature: Annotated[float, Meta(ge=0)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=2)] | None = None
    sampling_seed: int | None = None
    stop: StopString | StopStrings | None = None
    stop_token_ids: StopIds | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None


class GenerateRequest(Struct, kw_only=True, forbid_unknown_fields=True):
    """Exactly one of `text` and `input_ids`; a list of prompts makes a batch."""

    text: str | list[str] | None = None
    input_ids: list[int | list[int]] | None = None
    sampling_params: NativeSampling | list[NativeSampling] | None = None
    rid: str | list[str] | None = None
    stream: bool | None = None
    return_logprob: bool | None = None
    logprob_start_len: Annotated[int, Meta(ge=-1)] | None = None
    top_logprobs_num: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    return_text_in_logprobs: bool | None = None
    extra_key: str | None = None
    cache_salt: str | None = None
    priority: int | None = None
    force_miss: bool | None = None


LogprobEntry = tuple[float | None, int, str | None]
"""(logprob, token id, text if asked for)"""


class MetaInfo(Struct, kw_only=True):
    """Counts are totals so far, times are seconds."""

    id: str
    finish_reason: dict[str, Any] | None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    cached_tokens_details: dict[str, int]
    e2e_latency: float
    queue_time: float
    prefill_time: float
    decode_time: float
    input_token_logprobs: list[LogprobEntry] | UnsetType = UNSET
    output_token_logprobs: list[LogprobEntry] | UnsetType = UNSET
    input_top_logprobs: list[list[LogprobEntry] | None] | UnsetType = UNSET
    output_top_logprobs: list[list[LogprobEntry] | None] | UnsetType = UNSET


class GenerateResponse(Struct, kw_only=True):
    """One request's answer, or one event of its stream; `index` only in a batch's stream."""

    text: str
    output_ids: list[int]
    meta_info: MetaInfo
    index: int | UnsetType = UNSET


_SPELLING = {name: f"sampling_params.{name}" for name in SamplingParams.__struct_fields__}
_SPELLING |= {"seed": "sampling_params.sampling_seed", "num_logprobs": "top_logprobs_num"}


async def generate(request: Request) -> Response:
    worker: Worker = request.app.state.worker
    body = read_body(await read_json(request, worker.config.max_body_bytes))
    rid = body.rid if isinstance(body.rid, str) else new_id()
    asks, is_batch = await read_asks(worker, body, rid)
    call = make_call(worker, rid, asks, stream=bool(body.stream))
    view = _View(worker, body, is_batch)
    if body.stream:
        return EventStream(worker, call, view.events)
    answers = [view.response(choice) for choice in await answer(request, worker, call)]
    return json_response(answers if is_batch else answers[0])


def read_body(given: dict[str, Any]) -> GenerateRequest:
    """Raises InvalidRequestError as `convert` does."""
    return convert(given, GenerateRequest, known_fields.GENERATE, {known_fields.SAMPLING: NativeSampling})


async def read_asks(worker: Worker, body: GenerateRequest, rid: str) -> tuple[list[Ask], bool]:
    """What `body` asks, and whether it is a batch.

    Raises:
        InvalidRequestError: it contradicts itself, or asks for what this worker does not honour.
    """
    if (body.text is None) == (body.input_ids is None):
        raise InvalidRequestError("give either text or input_ids", "text")
    _check_logprob_fields(body)
    param, given = ("text", body.text) if body.text is not None else ("input_ids", body.input_ids)
    check_extras(worker, force_miss=bool(body.force_miss), priority=body.priority or 0)
    prompts = split_prompt(given, param)
    is_batch = isinstance(given, list) and not isinstance(given[0], int)
    samplings = _samplings(worker, body, len(prompts), is_batch)
    asks = [
        Ask(
            rid=request_id,
            token_ids=await to_token_ids(worker, prompt, param),
            sampling=sampling,
            num_choices=num_choices,
            namespace=Namespace(body.extra_key, body.cache_salt),
            priority=body.priority or 0,
            force_miss=bool(body.force_miss),
            return_prompt_logprobs=_prompt_logprobs_from(body) is not None,
        )
        for request_id, prompt, (sampling, num_choices) in zip(
            _ids(body, rid, len(prompts)), prompts, samplings, strict=True
        )
    ]
    return asks, is_batch or asks[0].num_choices > 1


def _check_logprob_fields(body: GenerateRequest) -> None:
    """Raises InvalidRequestError for what would be ignored, as no logprobs are returned."""
    if body.return_logprob:
        return
    for name, is_asked in (
        ("top_logprobs_num", bool(body.top_logprobs_num)),
        ("logprob_start_len", body.logprob_start_len not in (None, -1)),
        ("return_text_in_logprobs", bool(body.return_text_in_logprobs)),
    ):
        if is_asked:
            raise InvalidRequestError(f"{name} needs return_logprob", name)


def _ids(body: GenerateRequest, rid: str, num_prompts: int) -> list[str]:
    if not isinstance(body.rid, list):
        return ids_of(rid, num_prompts)
    if len(body.rid) != num_prompts:
        raise InvalidRequestError("a list of rids needs a list of prompts of its length", "rid")
    return body.rid


def _samplings(
    worker: Worker, body: GenerateRequest, num_prompts: int, is_batch: bool
) -> list[tuple[SamplingParams, int]]:
    """Parameters and number of choices of each prompt."""
    given = body.sampling_params
    if not isinstance(given, list):
        return [_sampling(worker, body, given or NativeSampling())] * num_prompts
    if not is_batch or len(given) != num_prompts:
        raise InvalidRequestError(
            "a list of sampling_params needs a list of prompts of its length", "sampling_params"
        )
    return [_sampling(worker, body, one) for one in given]


def _sampling(worker: Worker, body: GenerateRequest, given: NativeSampling) -> tuple[SamplingParams, int]:
    values = asdict(given)
    num_choices = values.pop("n") or 1
    values["seed"] = values.pop("sampling_seed")
    values["stop"] = as_tuple(given.stop)
    values["stop_token_ids"] = as_tuple(given.stop_token_ids)
    if body.return_logprob:
        values["num_logprobs"] = body.top_logprobs_num or 0
    return sampling_from(worker, values, _SPELLING), num_choices


def _prompt_logprobs_from(body: GenerateRequest) -> int | None:
    """The first prompt token whose logprob is wanted."""
    start = body.logprob_start_len
    return start if body.return_logprob and start is not None and start >= 0 else None


class _View:
    """Choices as the body asked to see them."""

    def __init__(self, worker: Worker, body: GenerateRequest, is_batch: bool) -> None:
        self._worker = worker
        self._is_batch = is_batch
        self._with_logprobs = bool(body.return_logprob)
        self._with_top = bool(body.top_logprobs_num)
        self._with_text = bool(body.return_text_in_logprobs)
        self._prompt_from = _prompt_logprobs_from(body)

    def events(self, changed: list[Choice], is_last: bool) -> bytes:
        responses = [self.response(choice) for choice in changed]
        if self._is_batch:
            for choice, response in zip(changed, responses, strict=True):
                response.index = choice.index
        return b"".join([event(response) for response in responses])

    def response(self, choice: Choice) -> GenerateResponse:
        return GenerateResponse(text=choice.text, output_ids=choice.token_ids, meta_info=self._meta(choice))

    def _meta(self, choice: Choice) -> MetaInfo:
        started, ended = choice.started, choice.ended
        by_tier = started.num_cached_tokens_by_tier if started else {}
        queue_time_s = started.queue_time_s if started else 0.0
        prefill_time_s = started.prefill_time_s if started else 0.0
        if ended is not None:
            e2e_time_s, decode_time_s = ended.e2e_time_s, ended.decode_time_s
        else:
            e2e_time_s = self._worker.clock.now() - choice.arrival_s
            decode_time_s = max(0.0, e2e_time_s - queue_time_s - prefill_time_s)
        meta = MetaInfo(
            id=choice.request_id,
            finish_reason=_finish_reason(choice),
            prompt_tokens=len(choice.prompt_token_ids),
            completion_tokens=len(choice.token_ids),
            cached_tokens=choice.num_cached_tokens,
            cached_tokens_details={tier: by_tier.get(tier, 0) for tier in TIERS},
            e2e_latency=e2e_time_s,
            queue_time=queue_time_s,
            prefill_time=prefill_time_s,
            decode_time=decode_time_s,
        )
        if self._with_logprobs:
            self._add_logprobs(meta, choice)
        return meta

    def _add_logprobs(self, meta: MetaInfo, choice: Choice) -> None:
        prompt = []
        if choice.started is not None and self._prompt_from is not None:
            prompt = choice.started.prompt_logprobs[self._prompt_from :]
        meta.input_token_logprobs = [self._entry(one.token_id, one.logprob) for one in prompt]
        meta.output_token_logprobs = [self._entry(one.token_id, one.logprob) for one in choice.logprobs]
        if self._with_top:
            meta.input_top_logprobs = [self._top(one) for one in prompt]
            meta.output_top_logprobs = [self._top(one) for one in choice.logprobs]

    def _top(self, one: TokenLogprobs) -> list[LogprobEntry] | None:
        if one.logprob is None:
            return None
        return [self._entry(token_id, logprob) for token_id, logprob in one.top]

    def _entry(self, token_id: int, logprob: float | None) -> LogprobEntry:
        text = None
        if self._with_text:
            text = self._worker.tokenizer.decode([token_id], skip_special_tokens=False)
        return logprob, token_id, text


def _finish_reason(choice: Choice) -> dict[str, Any] | None:
    ended = choice.ended
    if ended is None:
        return None
    reason: dict[str, Any] = {"type": ended.reason.value}
    if ended.reason is FinishReason.STOP:
        reason["matched"] = ended.matched_stop
    elif ended.reason is FinishReason.LENGTH:
        reason["length"] = len(choice.token_ids)
    else:
        reason["message"] = "aborted"
    return reason
