"""From what a body asks to requests for the loop: text to ids, ids checked, sampling checked, ids given.

Owns every check of a prompt that needs no queue and no pages; those are the scheduler's.

Invariant: a request that leaves here has valid ids, valid sampling and a fresh id.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import numpy as np

from prefixlab.core.block_hash import PUBLIC, Namespace, TokenIds
from prefixlab.core.errors import InvalidRequestError
from prefixlab.core.request import Request
from prefixlab.core.sampling_params import SamplingParams
from prefixlab.core.text.incremental import IncrementalDecoder
from prefixlab.server.calls import Call
from prefixlab.server.worker import Worker

MAX_CHOICES = 1024
"""Requests in one call: prompts times choices."""
MAX_PRIORITY = 2**31 - 1
MAX_INLINE_TEXT = 2048
"""Characters beyond which encoding goes to another thread, so that streams go on meanwhile."""
MAX_STOPS = 64
"""Stop strings, or stop ids, of one request: each is looked for at every token."""

StopString = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
StopStrings = Annotated[list[StopString], msgspec.Meta(max_length=MAX_STOPS)]
StopIds = Annotated[list[int], msgspec.Meta(max_length=MAX_STOPS)]


@dataclass(frozen=True, slots=True)
class Ask:
    """One prompt and what is wanted of it.

    Attributes:
        rid: id of the request; with `num_choices` > 1 a stem of ids.
    """

    rid: str
    token_ids: TokenIds
    sampling: SamplingParams
    num_choices: int = 1
    namespace: Namespace = PUBLIC
    priority: int = 0
    force_miss: bool = False
    return_prompt_logprobs: bool = False


def new_id(prefix: str = "") -> str:
    return prefix + uuid.uuid4().hex


def ids_of(rid: str, num_prompts: int) -> list[str]:
    """Request ids of a call's prompts: the call's own, and a number each where there are several."""
    return [rid] if num_prompts == 1 else [f"{rid}_{index}" for index in range(num_prompts)]


async def encode(worker: Worker, text: str, param: str) -> TokenIds:
    """Ids of a text prompt. Raises InvalidRequestError if there are none."""
    if len(text) > MAX_INLINE_TEXT:
        ids = await asyncio.to_thread(worker.tokenizer.encode, text)
    else:
        ids = worker.tokenizer.encode(text)
    return check_token_ids(worker, ids, param)


def check_token_ids(worker: Worker, ids: Sequence[int], param: str) -> TokenIds:
    """Raises InvalidRequestError if there are none, or one is not of the vocabulary."""
    if not ids:
        raise InvalidRequestError("the prompt is empty", param)
    try:
        wide = np.fromiter(ids, dtype=np.int64, count=len(ids))
    except OverflowError:
        wide = np.array([-1])
    if wide.min() < 0 or wide.max() >= worker.vocab_size:
        bad = next(i for i in ids if not 0 <= i < worker.vocab_size)
        raise InvalidRequestError(
            f"token id {bad} is not in the vocabulary (0 … {worker.vocab_size - 1})", param
        )
    return wide.astype(np.int32)


def split_prompt(prompt: Any, param: str) -> list[str | list[int]]:
    """A prompt field of any accepted form as a list of prompts: text, texts, ids, or lists of ids."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise InvalidRequestError("the prompt is empty", param)
    kinds = set(map(type, prompt))
    if kinds == {int}:
        return [prompt]
    if kinds in ({str}, {list}):
        return list(prompt)
    raise InvalidRequestError("must be a text, texts, token ids, or lists of token ids, not a mixture", param)


async def to_token_ids(worker: Worker, prompt: str | list[int], param: str) -> TokenIds:
    if isinstance(prompt, str):
        return await encode(worker, prompt, param)
    return check_token_ids(worker, prompt, param)


def sampling_from(worker: Worker, values: dict[str, Any], spelling: dict[str, str]) -> SamplingParams:
    """Validated parameters from the fields that were given (None: not given).

    Args:
        spelling: our name → the client's, for errors.
    """
    given = {name: value for name, value in values.items() if value is not None}
    try:
        sampling = SamplingParams(**given).validate()
        for token_id in sampling.stop_token_ids:
            if not 0 <= token_id < worker.vocab_size:
                raise InvalidRequestError(
                    f"stop_token_ids holds {token_id}, which is not in the vocabulary", "stop_token_ids"
                )
        return sampling
    except InvalidRequestError as error:
        name = error.param or ""
        client_name = spelling.get(name, name)
        raise InvalidRequestError(str(error).replace(name, client_name, 1), client_name) from None


def as_tuple(stop: str | Sequence[Any] | None) -> tuple[Any, ...] | None:
    """Stop strings or ids in their one-or-many spelling; None stays None."""
    if stop is None:
        return None
    return (stop,) if isinstance(stop, str) else tuple(stop)


def check_extras(worker: Worker, *, force_miss: bool, priority: int) -> None:
    """Raises InvalidRequestError for a request this worker's settings would have to ignore."""
    if force_miss and not worker.supports_force_miss:
        raise InvalidRequestError(
            "this server's cache shares nothing, so no miss can be forced", "force_miss"
        )
    if abs(priority) > MAX_PRIORITY:
        raise InvalidRequestError(f"priority must lie within ±{MAX_PRIORITY}, not {priority}", "priority")
    if priority and not worker.honours_priority:
        raise InvalidRequestError(
            "priority has no effect here: the server runs neither --schedule-policy priority nor "
            "--eviction-policy priority",
            "priority",
        )


def make_call(worker: Worker, rid: str, asks: Sequence[Ask], *, stream: bool) -> Call:
    """One call of all requests, choices of a prompt next to each other.

    Raises:
        InvalidRequestError: they are too many.
    """
    num_choices = sum(ask.num_choices for ask in asks)
    if num_choices > MAX_CHOICES:
        raise InvalidRequestError(f"{num_choices} prompts times choices are more than {MAX_CHOICES}", "n")
    arrival_s = worker.clock.now()
    work = []
    for ask in asks:
        for choice in range(ask.num_choices):
            request_id = ask.rid if ask.num_choices == 1 else f"{ask.rid}_{choice}"
            sampling = ask.sampling.for_choice(choice)
            request = Request(
                request_id,
                ask.token_ids,
                sampling,
                arrival_s=arrival_s,
                namespace=ask.namespace,
                priority=ask.priority,
                force_miss=ask.force_miss,
                return_prompt_logprobs=ask.return_prompt_logprobs,
                stop_token_ids=sampling.stop_ids(worker.eos_token_ids),
            )
            work.append((request, IncrementalDecoder.for_request(worker.tokenizer, sampling)))
    return Call(rid, work, stream=stream)
