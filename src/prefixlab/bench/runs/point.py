"""One point's requests: how many, when, how long, and what each says.

Owns the way from settings to a plan. An `Outline` needs no server, so a dry run can show it; with an endpoint
it becomes Planned requests.

Invariants: requests depend on (seed, this point's own settings, repeat, salt) alone; the same settings give
the same ids, so a run can go on where it stopped.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from prefixlab.bench.config.dataset import SamplingConfig
from prefixlab.bench.config.serve import ServeConfig
from prefixlab.bench.config.sessions import SessionsConfig
from prefixlab.bench.config.sharing import HitRateConfig
from prefixlab.bench.loadgen.plan import Load, Planned
from prefixlab.bench.runs.making import default_num_prompts, make_workload
from prefixlab.bench.runs.sessions import is_continuing, places_in_sessions, spread
from prefixlab.bench.runs.trace import with_room
from prefixlab.bench.targets.endpoint import Endpoint
from prefixlab.bench.workloads.arrivals import FloatArray
from prefixlab.bench.workloads.expected import ExpectedHits
from prefixlab.bench.workloads.files.custom import Content, Row, content_of
from prefixlab.bench.workloads.files.known import with_sharing
from prefixlab.bench.workloads.files.saved import FORMAT, Head, path_of, write_workload
from prefixlab.bench.workloads.generators.random import RandomShape, sketch_random
from prefixlab.bench.workloads.prompts import make_probe, make_prompts, make_trial
from prefixlab.bench.workloads.sketch import NOBODY, Sketches
from prefixlab.bench.workloads.variants import OWN_TOKENS, PLAIN, Variant, unshared, with_prefixes_first
from prefixlab.bench.workloads.wording import IdWording, Prompt, Wording
from prefixlab.bench.workloads.words import TextWording, WordWording
from prefixlab.bench.workloads.workload import Workload
from prefixlab.core.block_hash import TokenIds
from prefixlab.core.errors import ConfigError
from prefixlab.core.seams import Tokenizer
from prefixlab.core.target import TargetRequest

CHAT = "openai-chat"
NATIVE = ("prefixlab", "sglang", "in-process")
WARM_UP_SALT = 1 << 63
"""No salt of a measured run: those stay below 2⁶²."""


@dataclass(frozen=True, eq=False)
class Outline:
    """What one repeat of a point sends, before any prompt is made.

    Attributes:
        offsets_s: shape (len(workload),); None where nothing says when.
    """

    workload: Workload
    offsets_s: FloatArray | None

    @property
    def num_requests(self) -> int:
        return len(self.workload)

    @property
    def last_arrival_s(self) -> float:
        return 0.0 if self.offsets_s is None else float(self.offsets_s[-1])


def outline(config: ServeConfig, repeat: int = 0, tokenizer: Tokenizer | None = None) -> Outline:
    """`tokenizer` counts what a file has as text. Raises ConfigError where files cannot be read, or settings
    bring no request."""
    dataset, load = config.dataset, config.load
    asked = dataset.num_prompts
    if dataset.dataset_name in SessionsConfig.DATASETS:
        asked = config.sessions.num_sessions  # it is sessions that arrive, their later turns wait
    offsets = load.offsets(asked, default_num_prompts(config, tokenizer), dataset.seed, repeat)
    workload = make_workload(config, asked if offsets is None else len(offsets), tokenizer)
    if load.fixed_schedule:
        workload, offsets = _as_recorded(workload, config)
    elif offsets is not None:
        offsets = spread(offsets, workload)
    return Outline(workload, offsets)


def _as_recorded(workload: Workload, config: ServeConfig) -> tuple[Workload, FloatArray]:
    """With its own times, as far as --duration allows."""
    offsets = workload.offsets_s
    if offsets is None:
        raise ConfigError(
            f"{config.dataset.dataset_path} has no times: give --no-fixed-schedule, and --max-concurrency or "
            "--request-rate"
        )
    if config.load.duration is not None:
        offsets = offsets[: int(np.searchsorted(offsets, config.load.duration))]
    config.load.check(offsets)
    return workload.first(len(offsets)), offsets


def load_of(config: ServeConfig, *, spent_s: float = 0.0) -> Load:
    """How the plan is paced; `spent_s` of --duration are over already."""
    load = config.load
    left_s = None if load.duration is None else max(0.0, load.duration - spent_s)
    return Load(
        open_loop=load.open_loop,
        max_concurrency=load.max_concurrency,
        num_workers=config.target.num_workers,
        stop_after_s=left_s,
        retries=load.retries,
    )


@dataclass(frozen=True, slots=True)
class _Ask:
    """One request, before it has an id and a time.

    Attributes:
        prompt: the field of TargetRequest that holds it.
        num_prompt_tokens: 0 where only the server can count.
    """

    prompt: Mapping[str, Any]
    num_prompt_tokens: int
    num_output_tokens: int
    num_expected_cached_tokens: int | None = None


@dataclass(frozen=True)
class Asker:
    """Makes requests that the endpoint takes, out of what a point's settings say."""

    endpoint: Endpoint
    config: ServeConfig
    tokenizer: Tokenizer | None = None
    knows_head: bool = False
    """Something is sent before the first request: the server has seen what a chat template begins with."""
    variant: Variant = PLAIN

    def outline(self, repeat: int = 0) -> Outline:
        """Of a repeat, made to hold what the wording puts around the content of prompts; of a file's prompts
        with what they share, as far as that is known."""
        planned = outline(self.config, repeat, self.tokenizer)
        if planned.workload.rows_in_words:
            known = (self._content(row).known for row in planned.workload.rows)
            return replace(planned, workload=with_sharing(planned.workload, known, self._head))
        if self.variant.unshared and planned.workload.made_up is not None:
            return replace(
                planned, workload=replace(planned.workload, sketches=unshared(planned.workload.made_up))
            )
        if planned.workload.recorded is None:
            return planned
        return replace(planned, workload=with_room(planned.workload, self.wording))

    def requests(self, outline: Outline, repeat: int, salt: int) -> Iterator[Planned]:
        """The plan, made as it is read."""
        offsets = itertools.repeat(0.0) if outline.offsets_s is None else iter(outline.offsets_s.tolist())
        places = places_in_sessions(outline.workload.sketches)
        asker = replace(self, knows_head=True) if repeat else self
        of_each = outline.workload.servers
        servers = itertools.repeat(0) if of_each is None else iter(of_each.tolist())
        for number, (ask, offset_s, place, server) in enumerate(
            zip(asker._asks(outline, salt + repeat), offsets, places, servers, strict=False)
        ):
            if "session_id" in place:
                place["session_id"] = self._id(repeat, place["session_id"])
            yield Planned(
                request=self._request(self._id(repeat, number), ask),
                num_prompt_tokens=ask.num_prompt_tokens,
                num_expected_cached_tokens=ask.num_expected_cached_tokens,
                offset_s=offset_s,
                server=server,
                **place,
            )

    def prefixes(self, outline: Outline, repeat: int, salt: int) -> list[Planned]:
        """Requests that bring what prompts of a repeat share into the cache, and are not measured."""
        sketches = outline.workload.made_up
        if sketches is None:
            return []
        with_first, count = self._with_prefixes(sketches)
        asks = itertools.islice(self._all_made_up(with_first, salt + repeat), count)
        return [
            Planned(self._request(self._id(repeat, f"prefix-{number}"), ask), ask.num_prompt_tokens)
            for number, ask in enumerate(asks)
        ]

    def save(self, outline: Outline, repeat: int, salt: int, name: str) -> Path:
        """Write the plan to a file; where there are repeats each has its own. ConfigError if it cannot be.
        Returns which file it was."""
        path = workload_path(name, repeat, self.config.load.repeats)
        head = Head(
            FORMAT,
            requests=outline.num_requests,
            repeat=repeat,
            seed=self.config.dataset.seed,
            page_size=self.endpoint.page_size,
            capacity_tokens=self._capacity_tokens,
            settings=self.config.stored(),
        )
        timed = outline.offsets_s is not None
        plan = self.requests(outline, repeat, salt)
        write_workload(path, head, plan, timed=timed, id_prefix=self.id_prefix(repeat))
        return path

    def request_ids(self, outline: Outline, repeat: int) -> list[str]:
        """Of the whole plan, without making its prompts."""
        return [self._id(repeat, number) for number in range(outline.num_requests)]

    def warm_ups(self, outline: Outline) -> list[Planned]:
        """Requests of random prompts of their own, as long as random ones are."""
        inputs, outputs = self.config.dataset.lengths(as_sglang=self.config.as_sglang)
        prefix = self.config.dataset.random_prefix_len
        shape = RandomShape(self.config.load.num_warmups, inputs, outputs, prefix)
        return [
            Planned(
                self._request(f"warm-up-{number}", ask),
                ask.num_prompt_tokens,
                server=number % max(1, len(self.config.request.url)),
            )
            for number, ask in enumerate(self._made_up(sketch_random(shape, *self._key), WARM_UP_SALT))
        ]

    def trial(self, outline: Outline) -> Planned | None:
        """A request to find out early whether the server takes these token ids. It is not measured and warms
        nothing that is. None where that is known, or prompts are no ids."""
        wording, sketches = self.wording, outline.workload.made_up
        known = self.endpoint.facts.vocab_size is not None
        if known or sketches is None or not isinstance(wording, IdWording):
            return None
        salts = range(self.config.load.repeats)
        prompt = wording.prompt(make_trial(sketches, wording.vocabulary, *self._key, salts=salts))
        ask = _Ask(self._prompt_fields(prompt), len(prompt), 1)
        return Planned(self._request("trial", ask), len(prompt))

    def probe(self, outline: Outline, num_tokens: int, salt: int) -> Prompt:
        """A prompt that shares nothing with any of the outline's, to prove the cache cold with."""
        return make_probe(outline.workload.made_up, self.wording, num_tokens, *self._key, salt=salt)

    @property
    def is_chat(self) -> bool:
        return self.endpoint.backend == CHAT

    @property
    def wording(self) -> Wording:
        """How made-up tokens travel."""
        form, ours = self.config.dataset.prompt_form, self.endpoint.wording
        if self.is_chat and form == "ids":
            raise ConfigError("--prompt-form ids: chat takes text; choose a backend that takes token ids")
        if form == "text" and not self.is_chat and isinstance(ours, IdWording):
            if self.tokenizer is None:
                return WordWording()
            return TextWording(self.tokenizer, ours.vocabulary)
        return ours

    def prompts(self, sketches: Sketches, salt: int) -> Iterator[Prompt]:
        """As they are worded, one after another; of one that continues another, only what is new."""
        return make_prompts(sketches, self.wording, *self._key, salt=salt)

    @property
    def _key(self) -> tuple[int, int]:
        return self.config.dataset.seed, self.config.key()

    def _asks(self, outline: Outline, salt: int) -> Iterator[_Ask]:
        workload = outline.workload
        if workload.made_up is not None:
            return self._made_up(workload.made_up, salt)
        if workload.sketches is not None:
            return self._of_file(workload, workload.sketches)
        return map(self._row_ask, workload.rows)

    def _made_up(self, sketches: Sketches, salt: int) -> Iterator[_Ask]:
        with_first, count = self._with_prefixes(sketches)
        return itertools.islice(self._all_made_up(with_first, salt), count, None)

    def _with_prefixes(self, sketches: Sketches) -> tuple[Sketches, int]:
        """What is really sent, and how much of it comes before the requests."""
        if not self.variant.prewarmed:
            return sketches, 0
        return with_prefixes_first(sketches, OWN_TOKENS + self.wording.num_tail_tokens)

    def _all_made_up(self, sketches: Sketches, salt: int) -> Iterator[_Ask]:
        prompts, expected = self.prompts(sketches, salt), self.expected(sketches, self.wording)
        columns = (prompts, expected, sketches.prompt_tokens.tolist(), sketches.output_tokens.tolist())
        continuing = is_continuing(sketches).tolist()
        for prompt, found, whole_len, output_len, continues in zip(*columns, continuing, strict=True):
            num_tokens = whole_len if continues else len(prompt)
            # Which tokens a conversation becomes on chat, the server's template decides.
            known = not (continues and self.is_chat)
            yield _Ask(self._prompt_fields(prompt), num_tokens, output_len, found if known else None)

    def expected(self, sketches: Sketches, wording: Wording | None = None) -> list[int] | list[None]:
        """What the server's cache should serve of each prompt, requests one after another; None of each where
        that is not known. `wording`: of prompts that are made up."""
        if wording is not None and not wording.is_exact:
            return [None] * len(sketches)
        if self.endpoint.expects_miss is not None:
            return [0] * len(sketches)
        if self.endpoint.page_size is None:
            return [None] * len(sketches)
        hits = ExpectedHits(self.endpoint.page_size, self._capacity_tokens)
        served: list[int] = hits.of(sketches, wording, knows_head=self.knows_head).tolist()
        return served

    def capacity_note(self, outline: Outline) -> str | None:
        """How much the size of the server's cache takes from what is expected of it; None where nothing."""
        sketches, page_size, capacity = (
            outline.workload.sketches,
            self.endpoint.page_size,
            self._capacity_tokens,
        )
        wording = None if outline.workload.made_up is None else self.wording
        if (
            sketches is None
            or page_size is None
            or capacity is None
            or self.endpoint.expects_miss is not None
        ):
            return None
        if wording is not None and not wording.is_exact:
            return None
        ideal, held = (ExpectedHits(page_size, size).of(sketches, wording).sum() for size in (None, capacity))
        if ideal == held:
            return None
        return (
            f"the server's cache holds {capacity:,} tokens: expected hits are those of one that forgets what "
            f"was used longest ago, requests one after another, {ideal - held:,} tokens fewer than if it "
            "forgot nothing"
        )

    def made_for_note(self, outline: Outline) -> str | None:
        """Where hit rates were aimed at a larger cache than the server's, and this one serves less."""
        sketches, page_size = outline.workload.made_up, self.endpoint.page_size
        aimed, held = self.config.hit_rate.hit_rate_capacity, self._capacity_tokens
        if self.config.dataset.dataset_name not in HitRateConfig.DATASETS or sketches is None:
            return None
        if page_size is None or held is None or self.endpoint.expects_miss is not None:
            return None
        if (aimed is not None and aimed <= held) or not self.wording.is_exact:
            return None
        hits = [ExpectedHits(page_size, size).of(sketches).sum() for size in (aimed, held)]
        if hits[0] == hits[1]:
            return None
        size = "that forgets nothing" if aimed is None else f"of {aimed:,} tokens"
        return (
            f"made for a cache {size}, the server holds {held:,} tokens: --hit-rate-capacity {held} aims for "
            "what it can serve"
        )

    def knows_tokens(self, outline: Outline) -> bool:
        """Whether any prompt goes as tokens that are known here; else all are text."""
        if outline.workload.made_up is not None:
            return self.wording.is_exact
        workload = outline.workload
        return workload.rows_known or any(row.token_ids is not None for row in workload.rows)

    @property
    def _capacity_tokens(self) -> int | None:
        """Of the server's cache, where that alone decides what it forgets and when."""
        facts, is_one = self.endpoint.facts, len(self.config.request.url) < 2
        return facts.capacity_tokens if is_one and facts.forgets_oldest else None

    def _of_file(self, workload: Workload, sketches: Sketches) -> Iterator[_Ask]:
        expected, totals = self.expected(sketches), sketches.prompt_tokens.tolist()
        if self.knows_head and workload.behind_head is not None:
            expected = self.expected(workload.behind_head)[-len(sketches) :]
        continuing = is_continuing(sketches).tolist()
        columns = zip(workload.rows, expected, totals, continuing, strict=True)
        for row, found, num_tokens, continues in columns:
            if continues and row.token_ids is None and not self.is_chat:
                raise ConfigError("conversations in words go on only on chat: use --backend openai-chat")
            ask = self._row_ask(row)
            if workload.counted or continues:
                ask = replace(ask, num_prompt_tokens=num_tokens if workload.counted else 0)
            if row.token_ids is not None or workload.rows_known:
                ask = replace(ask, num_expected_cached_tokens=found)
            yield ask

    def _content(self, row: Row) -> Content:
        template = self.config.dataset.chat_template
        return content_of(row, chat=self.is_chat, template=template, tokenizer=self.tokenizer)

    @property
    def _head(self) -> TokenIds:
        """What a chat template begins a user's message with, shape (n,); nothing where it is not known."""
        wording = self.wording
        return wording.prompt(wording.vocabulary.ids[:2]).token_ids[: wording.num_head_tokens]

    def _row_ask(self, row: Row) -> _Ask:
        content = self._content(row)
        fields = {
            "prompt_text": content.text,
            "prompt_token_ids": content.token_ids,
            "messages": content.messages,
        }
        return _Ask(fields, content.num_tokens, row.num_output_tokens)

    def _prompt_fields(self, prompt: Prompt) -> Mapping[str, Any]:
        if prompt.text is None:
            return {"prompt_token_ids": prompt.token_ids}
        if self.is_chat:
            return {"messages": ({"role": "user", "content": prompt.text},)}
        return {"prompt_text": prompt.text}

    def _request(self, request_id: str, ask: _Ask) -> TargetRequest:
        return TargetRequest(
            request_id=request_id,
            max_new_tokens=ask.num_output_tokens,
            temperature=self.config.sampling.temperature,
            ignore_eos=self.endpoint.ignore_eos,
            extra_body=self._extra_body(ask.num_output_tokens),
            **ask.prompt,
        )

    def _extra_body(self, output_len: int) -> dict[str, Any]:
        given = dict(self.endpoint.extra_body)
        if self.endpoint.backend not in NATIVE:
            return {**openai_sampling(self.config.sampling, chat=self.is_chat), **given}
        # /generate keeps these in an object of their own, which a body's field of that name replaces whole.
        sampling = self.config.sampling.given()
        nested = given.pop("sampling_params", {})
        logprobs = self.config.sampling.logprobs
        if logprobs is not None:
            given = {"return_logprob": True, "top_logprobs_num": logprobs, **given}
        if not (sampling or nested):
            return given
        params = {
            "temperature": self.config.sampling.temperature,
            "max_new_tokens": output_len,
            "ignore_eos": self.endpoint.ignore_eos,
            **sampling,
            **nested,
        }
        return {"sampling_params": params, **given}

    def id_prefix(self, repeat: int) -> str:
        """What the ids of a repeat's requests and sessions begin with."""
        of_repeat = f"repeat{repeat}-" if self.config.load.repeats > 1 else ""
        return f"{self.config.request.request_id_prefix}{of_repeat}"

    def _id(self, repeat: int, number: int | str) -> str:
        return f"{self.id_prefix(repeat)}{number}"


def workload_path(name: str, repeat: int, num_repeats: int) -> Path:
    """The file of --save-workload that a repeat's requests go to."""
    return path_of(Path(name), f"repeat{repeat}") if num_repeats > 1 else Path(name)


def openai_sampling(sampling: SamplingConfig, *, chat: bool) -> dict[str, Any]:
    """In OpenAI's field names. `top_k`, `min_p` and `repetition_penalty` are vLLM's and SGLang's own."""
    fields = sampling.given()
    if sampling.logprobs is not None:
        fields |= (
            {"logprobs": True, "top_logprobs": sampling.logprobs} if chat else {"logprobs": sampling.logprobs}
        )
    return fields


def rest_of(planned: Iterator[Planned], done: frozenset[str] | set[str]) -> Iterator[Planned]:
    """What is not done yet. What waits for another finds it at its new place, or waits for nobody."""
    places = array("q")
    num_left = 0
    for request in planned:
        if request.request.request_id in done:
            places.append(NOBODY)
            continue
        places.append(num_left)
        num_left += 1
        if request.after is not None:
            place = places[request.after]
            request = replace(request, after=None if place == NOBODY else place)
        yield request


def tokens_of(outline: Outline) -> tuple[int | None, int]:
    """Prompt tokens (None: the server will say) and output tokens, all together."""
    lengths = outline.workload.prompt_tokens
    return None if lengths is None else sum(lengths), sum(outline.workload.output_tokens)
