"""A server ready to be measured: how to ask it, what it is, and in which tokens.

Owns the table from `--backend` to dialect and admin API, and the choice between what the user said and what
the server says about itself. Opens the connection pool and closes it.

Invariant: what the server states and the user contradicts is an error, never a silent choice.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from prefixlab.bench.config.target import DEFAULT_VOCAB_SIZE, TargetConfig
from prefixlab.bench.loadgen.in_process import run_closed_loop
from prefixlab.bench.loadgen.plan import Planned
from prefixlab.bench.records.record import Outcome, Record
from prefixlab.bench.targets.cold_start import ColdStart, start_cold
from prefixlab.bench.targets.control import Control, NativeControl, ServerFacts, VllmControl, find_control
from prefixlab.bench.targets.dialects import ChatDialect, CompletionsDialect, Dialect, NativeDialect
from prefixlab.bench.targets.hints import with_hint
from prefixlab.bench.targets.http import HttpTarget, open_client
from prefixlab.bench.workloads.tokens import Vocabulary
from prefixlab.bench.workloads.wording import ChatWording, IdWording, Prompt, Wording
from prefixlab.core.clock import Clock
from prefixlab.core.errors import ConfigError, TargetError
from prefixlab.core.hit_oracle import expected_cached_tokens
from prefixlab.core.seams import Target, Tokenizer
from prefixlab.core.target import TargetRequest

MakeTokenizer = Callable[[ServerFacts], Tokenizer | None]
"""The model's tokenizer, given what the server says of itself; None where ids need none."""

MIN_PROBE_TOKENS = 64
UNKNOWN_PAGE_PROBE_TOKENS = 1024


@dataclass(frozen=True)
class Endpoint:
    """See the module. `clock` stamps everything that concerns this server."""

    url: str
    backend: str
    """As the user named it; else what the server says it is."""
    model: str | None
    """As requests name it: as the user does, else as the server. On APIs that take no name: as the server."""
    target: Target
    control: Control
    facts: ServerFacts
    warnings: tuple[str, ...]
    """What a reader should know of this server before trusting any number."""
    wording: Wording
    clock: Clock
    page_size: int | None
    expects_miss: str | None
    """Why no request can hit; None where hits are expected."""
    ignore_eos: bool
    extra_body: dict[str, Any]

    @property
    def probe_tokens(self) -> int:
        """Length of a prompt that must hit when sent twice: over two pages, where their size is known."""
        if self.page_size is None:
            return UNKNOWN_PAGE_PROBE_TOKENS
        return max(MIN_PROBE_TOKENS, 2 * self.page_size + 1)

    def request(self, prompt: Prompt, request_id: str, max_new_tokens: int) -> TargetRequest:
        return prompt.request(
            request_id, max_new_tokens, ignore_eos=self.ignore_eos, extra_body=self.extra_body
        )

    def expected_cached_tokens(self, shared_tokens: int, prompt_tokens: int) -> int | None:
        """The hit oracle, as far as it is known here: None without a page size."""
        if self.expects_miss is not None:
            return 0
        if self.page_size is None:
            return None
        return expected_cached_tokens(shared_tokens, prompt_tokens, self.page_size)

    async def ask(self, name: str, prompt: Prompt, max_new_tokens: int) -> Record:
        """One request outside any measurement, which must succeed: TargetError if it does not."""
        plan = [Planned(self.request(prompt, name, max_new_tokens), len(prompt))]
        (record,) = await run_closed_loop(self.target, plan, max_concurrency=1, clock=self.clock)
        if record.outcome is not Outcome.OK:
            vocabulary = self.wording.vocabulary.describe()
            error = with_hint(record.error or record.outcome.value, self.url)
            raise TargetError(f"the {name} request failed, of {vocabulary}: {error}")
        return record

    async def start_cold(self, probe: Prompt) -> ColdStart:
        """Flush the cache and prove it with `probe`, as far as hits can be expected at all."""
        # Without a known page size a long probe may or may not hit; only a hit is taken as one.
        can_hit = self.expected_cached_tokens(len(probe), len(probe)) != 0

        async def ask_cached(prompt: Prompt) -> int | None:
            return (await self.ask("probe", prompt, 1)).num_cached_tokens

        return await start_cold(self.control, ask_cached, probe, can_hit=can_hit)


@asynccontextmanager
async def open_endpoint(
    config: TargetConfig, url: str, make_tokenizer: MakeTokenizer, clock: Clock
) -> AsyncIterator[Endpoint]:
    """Connect to `url` as `config` says.

    Raises:
        ConfigError: the options contradict the server or each other.
        TargetError: the server cannot be reached, or is not what `--backend` says.
    """
    admin_key = config.admin_api_key or config.api_key
    async with (
        open_client(url, api_key=config.api_key, read_timeout_s=config.read_timeout_s) as client,
        open_client(url, api_key=admin_key, read_timeout_s=config.read_timeout_s) as admin_client,
    ):
        dialect, control = await _speak(config.backend or "sglang", admin_client)
        facts = await control.facts()
        model, ignored = _model(dialect, config, facts)
        yield Endpoint(
            url=url,
            backend=config.backend or facts.backend,
            model=model,
            target=HttpTarget(client, dialect, clock, model=model),
            control=control,
            facts=facts,
            warnings=tuple(warning for warning in (facts.warning, ignored) if warning),
            wording=_wording(dialect, config, facts, make_tokenizer(facts)),
            clock=clock,
            page_size=_page_size(config, facts),
            expects_miss="--expect-miss" if config.expect_miss else facts.expects_miss,
            ignore_eos=not config.disable_ignore_eos,
            extra_body=config.extra_body(),
        )


async def _speak(backend: str, client: httpx.AsyncClient) -> tuple[Dialect, Control]:
    if backend in ("prefixlab", "sglang"):
        return NativeDialect(), NativeControl(client)
    if backend == "vllm":
        return CompletionsDialect(continuous_usage=True), VllmControl(client)
    dialect = CompletionsDialect() if backend == "openai" else ChatDialect()
    return dialect, await find_control(client, backend)


def _model(dialect: Dialect, config: TargetConfig, facts: ServerFacts) -> tuple[str | None, str | None]:
    """The model's name, and a warning where the user's goes nowhere.

    Native `/generate` takes no name, so the server answers whatever was asked for. Users of SGLang's own
    benchmark give a tokenizer's path there, so only our server's name is held against theirs.
    """
    if not isinstance(dialect, NativeDialect) or config.is_embedded:
        return config.model or facts.model, None
    if config.model is None or facts.model in (None, config.model):
        return facts.model or config.model, None
    if facts.backend == "prefixlab":
        raise ConfigError(f"--model {config.model}: the server serves {facts.model}")
    return facts.model, (
        f"--model {config.model} is not sent: /generate takes no name, and the server serves {facts.model}"
    )


def _page_size(config: TargetConfig, facts: ServerFacts) -> int | None:
    if config.page_size is None or facts.page_size in (None, config.page_size):
        return config.page_size or facts.page_size
    raise ConfigError(
        f"--page-size {config.page_size}: the server says its pages hold {facts.page_size} tokens"
    )


def _wording(
    dialect: Dialect, config: TargetConfig, facts: ServerFacts, tokenizer: Tokenizer | None
) -> Wording:
    if isinstance(dialect, ChatDialect):
        if tokenizer is None:
            raise ConfigError(
                "chat takes text, and without the model's tokenizer nobody knows which tokens it becomes: "
                "give --tokenizer, or use a backend that takes token ids"
            )
        return ChatWording(tokenizer)
    if tokenizer is not None:
        vocabulary = Vocabulary.of_tokenizer(tokenizer)
        limit = config.vocab_size or facts.vocab_size
        return IdWording(vocabulary.below(limit) if limit else vocabulary)
    if config.vocab_size is not None:
        return IdWording(Vocabulary.of_size(config.vocab_size, "as --vocab-size says"))
    if facts.vocab_size is not None:
        return IdWording(Vocabulary.of_size(facts.vocab_size, "as the server says"))
    return IdWording(Vocabulary.of_size(DEFAULT_VOCAB_SIZE, "assumed: give --tokenizer or --vocab-size"))
