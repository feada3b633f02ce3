"""The offline API: a model, its cache and its scheduler in this process, driven synchronously.

Owns the wiring of the three and nothing of their work; the same objects the server drives, so the same
tokens. The one file of the engine that imports cache and scheduler.

    with LLM("tiny", page_size=16) as llm:
        for result in llm.generate(["Hello", "Hello there"], SamplingParams(temperature=0)):
            print(result.text, result.num_cached_tokens)

Invariant: between calls nothing waits and nothing runs; what is cached stays for the next call.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import index
from types import TracebackType
from typing import Any

import numpy as np

from prefixlab.cache.config import CacheConfig
from prefixlab.cache.manager import CacheManager, CacheStats
from prefixlab.core.batch import Batch, StepResult, TokenLogprobs
from prefixlab.core.block_hash import as_token_ids
from prefixlab.core.clock import Clock, MonotonicClock
from prefixlab.core.config import did_you_mean, resolve
from prefixlab.core.errors import ConfigError, EngineError, InvalidRequestError
from prefixlab.core.request import FinishReason, Request
from prefixlab.core.sampling_params import SamplingParams
from prefixlab.core.text.incremental import IncrementalDecoder
from prefixlab.engine.config import EngineConfig
from prefixlab.engine.load import LoadedEngine, load_engine
from prefixlab.scheduler.config import SchedulerConfig
from prefixlab.scheduler.scheduler import Scheduler

Prompt = str | Sequence[int]
_CONFIGS = (EngineConfig, CacheConfig, SchedulerConfig)


@dataclass(frozen=True)
class GenerationResult:
    """One sample of one prompt.

    Attributes:
        prompt_index: which prompt of the call.
        sample_index: which of its `n` samples.
        token_ids: the output, the token that ended it included.
        text: what the tokens spell; without a stop id, cut before a stop string.
        finish_reason: "stop" or "length".
        matched_stop: the stop id or string, if one ended it.
        num_cached_tokens: prompt tokens served from the cache.
        logprobs: one entry per output token, where `num_logprobs` asked for them.
        prompt_logprobs: one entry per prompt token, where asked for.
    """

    prompt_index: int
    sample_index: int
    prompt_token_ids: list[int]
    token_ids: list[int]
    text: str
    finish_reason: str
    matched_stop: int | str | None
    num_cached_tokens: int
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None


@dataclass(slots=True)
class _Job:
    """A request under way, and what gathers beside it."""

    request: Request
    prompt_index: int
    sample_index: int
    decoder: IncrementalDecoder
    text: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)


class LLM:
    """A model to generate with.

    Args:
        model: built-in shape, Hugging Face folder or hub id.
        clock: where times come from.
        settings: any field of EngineConfig, CacheConfig or SchedulerConfig; the environment's
            `PREFIXLAB_…` variables count where a setting is not given.

    Raises:
        ConfigError: an unknown setting (named, with the nearest known one) or one that cannot be used.
        EngineError: the model cannot be loaded.
    """

    def __init__(self, model: str = "tiny", *, clock: Clock | None = None, **settings: Any) -> None:
        known = [field.name for config in _CONFIGS for field in dataclasses.fields(config)]
        for name in settings:
            if name not in known:
                raise ConfigError(f"LLM has no setting {name!r}{did_you_mean(name, known)}")
        engine_config = resolve(EngineConfig, settings | {"model": model})
        cache_config = resolve(CacheConfig, settings)
        scheduler_config = resolve(SchedulerConfig, settings)
        self._clock = clock or MonotonicClock()
        self._engine: LoadedEngine | None = load_engine(
            engine_config,
            page_size=cache_config.page_size,
            num_pages=cache_config.num_pages,
            max_running_requests=scheduler_config.max_running_requests,
            clock=self._clock,
        )
        self._cache = CacheManager(
            cache_config,
            num_pages=self._engine.num_pages,
            max_rows=scheduler_config.max_running_requests,
            max_tokens_per_row=self._engine.max_model_len,
        )
        self._scheduler = Scheduler(
            scheduler_config, self._cache, self._clock, max_model_len=self._engine.max_model_len
        )
        self._num_calls = 0

    @property
    def engine(self) -> LoadedEngine:
        """The model, its tokenizer and its runner. Raises EngineError once closed."""
        if self._engine is None:
            raise EngineError("this LLM is closed")
        return self._engine

    @property
    def cache_stats(self) -> CacheStats:
        return self._cache.stats()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        n: int = 1,
        return_prompt_logprobs: bool = False,
    ) -> list[GenerationResult]:
        """Complete every prompt; results in the order of prompts, each with its `n` samples side by side.

        Args:
            prompts: text or token ids, one prompt or a list.
            params: for all prompts, or one for each. Sample i of a seeded prompt has seed + i.

        Raises:
            RequestError: a prompt or its parameters are wrong; nothing has run.
            PrefixlabError: a request ended with an error; the others are aborted.
        """
        prompt_ids = self._encode(prompts)
        jobs = self._make_jobs(
            prompt_ids, self._params_of(params, len(prompt_ids)), n, return_prompt_logprobs
        )
        by_id = {job.request.request_id: job for job in jobs}
        try:
            for job in jobs:
                self._scheduler.add(job.request)
            while not self._scheduler.is_idle:
                self._step(by_id)
        finally:
            # After an error the rest must not linger; after success there is nothing to abort.
            for request_id in by_id:
                self._scheduler.abort(request_id)
            self._scheduler.take_ended()
        return [self._result(job) for job in jobs]

    def reset_cache(self) -> int:
        """Forget every cached prefix; returns pages dropped."""
        return self._cache.reset()

    def close(self) -> None:
        """Give the model's memory back. The LLM cannot be used afterwards; closing twice is fine."""
        self._engine = None

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # The loop. ----------------------------------------------------------------------------------------

    def _step(self, jobs: dict[str, _Job]) -> None:
        """One turn: decide, compute, account, look at the text."""
        batch = self._scheduler.step()
        if batch is not None:
            try:
                result = self.engine.runner.run(batch)
            except BaseException as error:
                # Also an interrupt: the scheduler must hear what became of its batch.
                reason = error if isinstance(error, Exception) else EngineError(repr(error))
                self._scheduler.fail(batch, reason)
                raise
            self._collect_logprobs(jobs, batch, result)
            for request in self._scheduler.commit(batch, result):
                self._advance_text(jobs[request.request_id])
        ended = self._scheduler.take_ended()
        for request in ended:
            if request.error is not None:
                raise request.error
        assert batch is not None or ended, "requests wait, none can run, and none ended"

    def _collect_logprobs(self, jobs: dict[str, _Job], batch: Batch, result: StepResult) -> None:
        for row, entry in result.logprobs.items():
            jobs[batch.requests[row].request_id].logprobs.append(entry)
        for row, entries in result.prompt_logprobs.items():
            job = jobs[batch.requests[row].request_id]
            if batch.starts[row] == 0:
                job.prompt_logprobs.clear()
            job.prompt_logprobs += entries

    def _advance_text(self, job: _Job) -> None:
        request = job.request
        if request.finish_reason is FinishReason.STOP:
            return  # a stop id belongs to the tokens, not to the text
        job.text.append(job.decoder.feed(request.output_token_ids[-1:]))
        if job.decoder.matched_stop is not None:
            self._scheduler.finish(request, job.decoder.matched_stop)

    # In and out. --------------------------------------------------------------------------------------

    def _encode(self, prompts: Prompt | Sequence[Prompt]) -> list[list[int]]:
        several: Sequence[Any] = prompts
        if isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int | np.integer)):
            several = [prompts]
        vocab_size, encoded = self.engine.model.vocab_size, []
        for i, prompt in enumerate(several):
            ids = self.engine.tokenizer.encode(prompt) if isinstance(prompt, str) else _as_ids(prompt, i)
            if not ids:
                raise InvalidRequestError(f"prompt {i} is empty", "prompts")
            if not all(0 <= token_id < vocab_size for token_id in ids):
                raise InvalidRequestError(f"prompt {i} has token ids outside 0 … {vocab_size - 1}", "prompts")
            encoded.append(ids)
        return encoded

    def _params_of(
        self, params: SamplingParams | Sequence[SamplingParams] | None, num_prompts: int
    ) -> list[SamplingParams]:
        if params is None or isinstance(params, SamplingParams):
            each = [params or SamplingParams()] * num_prompts
        else:
            each = list(params)
        if len(each) != num_prompts:
            raise InvalidRequestError(f"{num_prompts} prompts and {len(each)} sampling parameters", "params")
        return [one.validate() for one in each]

    def _make_jobs(
        self, prompts: list[list[int]], params: list[SamplingParams], n: int, return_prompt_logprobs: bool
    ) -> list[_Job]:
        if n < 1:
            raise InvalidRequestError(f"n must be at least 1, not {n}", "n")
        self._num_calls += 1
        jobs = []
        for prompt_index, (token_ids, sampling) in enumerate(zip(prompts, params, strict=True)):
            for sample_index in range(n):
                request = Request(
                    f"{self._num_calls}-{prompt_index}-{sample_index}",
                    as_token_ids(token_ids),
                    sampling.for_choice(sample_index),
                    arrival_s=self._clock.now(),
                    return_prompt_logprobs=return_prompt_logprobs,
                    stop_token_ids=sampling.stop_ids(self.engine.eos_token_ids),
                )
                decoder = IncrementalDecoder.for_request(self.engine.tokenizer, sampling)
                jobs.append(_Job(request, prompt_index, sample_index, decoder))
        return jobs

    def _result(self, job: _Job) -> GenerationResult:
        request = job.request
        assert request.finish_reason is not None
        return GenerationResult(
            prompt_index=job.prompt_index,
            sample_index=job.sample_index,
            prompt_token_ids=request.prompt_token_ids.tolist(),
            token_ids=list(request.output_token_ids),
            text="".join(job.text) + job.decoder.finish(),
            finish_reason=request.finish_reason.value,
            matched_stop=request.matched_stop,
            num_cached_tokens=request.num_cached_tokens or 0,
            logprobs=job.logprobs if request.sampling.num_logprobs is not None else None,
            prompt_logprobs=job.prompt_logprobs if request.return_prompt_logprobs else None,
        )


def _as_ids(prompt: Sequence[int], prompt_index: int) -> list[int]:
    try:
        return [index(token_id) for token_id in prompt]
    except TypeError:
        raise InvalidRequestError(f"prompt {prompt_index} is neither text nor token ids", "prompts") from None
