"""A server ready to be measured: how to ask it, what it is, and in which tokens.

Owns the table from `--backend` to dialect and admin API, and the choice between what the user said and what
the server says about itself. How requests travel is the driver's; here it is only made.

Invariant: what the server states and the user contradicts is an error, never a silent choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import httpx

from prefixlab.bench.config.target import DEFAULT_VOCAB_SIZE, IN_PROCESS, TargetConfig
from prefixlab.bench.loadgen.driver import Driver, Progress
from prefixlab.bench.loadgen.fleet import Machines, ThisMachine
from prefixlab.bench.loadgen.in_process import StreamDriver
from prefixlab.bench.loadgen.machines.ray_cluster import RayCluster
from prefixlab.bench.loadgen.plan import Load, Planned
from prefixlab.bench.loadgen.socket_driver import SocketDriver
from prefixlab.bench.records.record import Outcome, Record
from prefixlab.bench.targets.admin import open_admin
from prefixlab.bench.targets.cold_start import ColdStart, start_cold
from prefixlab.bench.targets.control import (
    Control,
    InProcessControl,
    NativeControl,
    OpenAIControl,
    ServerFacts,
    VllmControl,
    find_control,
    why_not_ready,
)
from prefixlab.bench.targets.dialects import ChatDialect, CompletionsDialect, Dialect, NativeDialect
from prefixlab.bench.targets.hints import with_hint
from prefixlab.bench.workloads.tokens import Vocabulary
from prefixlab.bench.workloads.wording import ChatWording, IdWording, Prompt, Wording
from prefixlab.bench.workloads.words import WordWording
from prefixlab.core.clock import Clock, sleep
from prefixlab.core.errors import ConfigError, TargetError
from prefixlab.core.hit_oracle import expected_cached_tokens
from prefixlab.core.seams import Target, Tokenizer
from prefixlab.core.target import TargetRequest

Say = Callable[[str], None]
MakeTokenizer = Callable[[ServerFacts], Tokenizer | None]
"""The model's tokenizer, given what the server says of itself; None where ids need none."""

READY_POLL_S = 0.5
READY_ANSWER_S = 5.0
SAY_EVERY_S = 10.0
MIN_PROBE_TOKENS = 64
UNKNOWN_PAGE_PROBE_TOKENS = 1024


@dataclass(frozen=True)
class Endpoint:
    """See the module."""

    url: str
    backend: str
    """As the user named it; else what the server says it is."""
    model: str | None
    """As requests name it: as the user does, else as the server. On APIs that take no name: as the server."""
    driver: Driver
    num_workers: int | None
    """Client processes for measured requests; None lets the driver choose."""
    control: Control
    facts: ServerFacts
    warnings: tuple[str, ...]
    """What a reader should know of this server before trusting any number."""
    wording: Wording
    page_size: int | None
    expects_miss: str | None
    """Why no request can hit; None where hits are expected."""
    ignore_eos: bool
    extra_body: dict[str, Any]
    say: Say | None = None
    """Told now and then that a question is still unanswered: silence would look like a fault of ours."""

    @property
    def simulated(self) -> str | None:
        """What stands where others name a machine, if no model runs."""
        return None if self.facts.simulated is None else f"simulated: {self.facts.simulated}"

    @property
    def probe_tokens(self) -> int:
        """Length of a prompt that must hit when sent twice: over two pages, where their size is known."""
        if self.page_size is None:
            return UNKNOWN_PAGE_PROBE_TOKENS
        return max(MIN_PROBE_TOKENS, 2 * self.page_size + 1)

    def request(self, prompt: Prompt, request_id: str, max_new_tokens: int) -> TargetRequest:
        return prompt.request(
            request_id,
            max_new_tokens,
            chat=self.backend == "openai-chat",
            ignore_eos=self.ignore_eos,
            extra_body=self.extra_body,
        )

    def expected_cached_tokens(self, shared_tokens: int, prompt_tokens: int) -> int | None:
        """The hit oracle, as far as it is known here: None without a page size."""
        if self.expects_miss is not None:
            return 0
        if self.page_size is None:
            return None
        return expected_cached_tokens(shared_tokens, prompt_tokens, self.page_size)

    def ask(self, name: str, prompt: Prompt, max_new_tokens: int) -> Record:
        """One request outside any measurement, the way measured ones go.

        Raises:
            TargetError: it did not succeed.
            KeyboardInterrupt: it was interrupted.
        """
        record = self.send(Planned(self.request(prompt, name, max_new_tokens), len(prompt)))
        if record.outcome is not Outcome.OK:
            vocabulary = self.wording.vocabulary.describe()
            error = with_hint(record.error or record.outcome.value, self.url)
            raise TargetError(f"the {name} request failed, of {vocabulary}: {error}")
        return record

    def send(self, planned: Planned) -> Record:
        """As `ask` does, whatever becomes of it. Raises KeyboardInterrupt if it was interrupted."""
        waiting = None if self.say is None else _Waiting(planned.request.request_id, self.say)
        drive = self.driver.run([planned], Load(open_loop=False, max_concurrency=1), on_progress=waiting)
        if drive.interrupted:
            raise KeyboardInterrupt
        (record,) = drive.records
        return record

    def start_cold(self, probe: Prompt) -> ColdStart:
        """Flush the cache and prove it with `probe`, as far as hits can be expected at all."""
        # Without a known page size a long probe may or may not hit; only a hit is taken as one.
        can_hit = self.expected_cached_tokens(len(probe), len(probe)) != 0

        def ask_cached(prompt: Prompt) -> int | None:
            return self.ask("probe", prompt, 1).num_cached_tokens

        return start_cold(self.control, ask_cached, probe, can_hit=can_hit)


class _Waiting:
    """An OnProgress that says at intervals how far the answer to one question is."""

    def __init__(self, name: str, say: Say) -> None:
        self._name = name
        self._say = say
        self._next_s = SAY_EVERY_S

    def __call__(self, progress: Progress) -> None:
        if not progress.finished and progress.elapsed_s >= self._next_s:
            self._next_s = progress.elapsed_s + SAY_EVERY_S
            so_far = f"{progress.elapsed_s:.0f} s, {progress.tokens:,} tokens so far"
            self._say(f"waiting for the answer to the {self._name} request: {so_far}")


def wait_until_ready(config: TargetConfig, url: str, timeout_s: float, clock: Clock) -> None:
    """Return as soon as the server at `url` takes requests; it is sent none (see `why_not_ready`).

    Raises:
        TargetError: it was not ready within `timeout_s`; says what it answered last.
    """
    deadline_s = clock.now() + timeout_s
    with open_admin(url, config) as client:
        left_s = timeout_s
        while missing := why_not_ready(client, max(READY_POLL_S, min(READY_ANSWER_S, left_s))):
            left_s = deadline_s - clock.now()
            if left_s <= 0:
                raise TargetError(f"the server was not ready within {timeout_s:g} s: {missing}")
            sleep(min(READY_POLL_S, left_s))


@contextmanager
def open_endpoint(
    config: TargetConfig, url: str, make_tokenizer: MakeTokenizer, *, say: Say | None = None
) -> Iterator[Endpoint]:
    """The server at `url`, asked as `config` says.

    Raises:
        ConfigError: the options contradict the server or each other.
        TargetError: the server cannot be reached, or is not what `--backend` says.
    """
    with open_admin(url, config) as client, _machines(config) as machines:
        dialect, control = _speak(config.backend or "sglang", client)
        facts = control.facts()
        model, ignored = _model(dialect, config, facts)
        yield Endpoint(
            url=url,
            backend=config.backend or facts.backend,
            model=model,
            driver=_socket_driver(config, url, dialect, model, machines),
            num_workers=config.num_workers,
            control=control,
            facts=facts,
            warnings=tuple(warning for warning in (facts.warning, ignored) if warning),
            wording=_wording(config, facts, make_tokenizer(facts), chat=isinstance(dialect, ChatDialect)),
            page_size=_page_size(config, facts),
            expects_miss=_expects_miss(config, facts),
            ignore_eos=not config.disable_ignore_eos,
            extra_body=config.extra_body(),
            say=say,
        )


def open_in_process(
    config: TargetConfig,
    target: Target,
    clock: Clock,
    *,
    info: Callable[[], Mapping[str, Any]],
    flush: Callable[[], bool],
    make_tokenizer: MakeTokenizer,
) -> Endpoint:
    """The engine in this process, asked through `target`, which stamps with `clock`.

    Args:
        info: what the engine says of itself, as `/server_info` would.
        flush: empties its cache; says whether it did.
    """
    control = InProcessControl(info, flush)
    facts = control.facts()
    return Endpoint(
        url=IN_PROCESS,
        backend=IN_PROCESS,
        model=facts.model,
        driver=StreamDriver(target, clock),
        num_workers=None,
        control=control,
        facts=facts,
        warnings=(facts.warning,) if facts.warning else (),
        wording=_wording(config, facts, make_tokenizer(facts), chat=False),
        page_size=_page_size(config, facts),
        expects_miss=_expects_miss(config, facts),
        ignore_eos=not config.disable_ignore_eos,
        extra_body=config.extra_body(),
    )


def _machines(config: TargetConfig) -> AbstractContextManager[Machines]:
    """Where client processes run, for as long as the block does."""
    return nullcontext(ThisMachine()) if config.ray is None else RayCluster(config.ray)


def _socket_driver(
    config: TargetConfig, url: str, dialect: Dialect, model: str | None, machines: Machines
) -> Driver:
    return SocketDriver(
        url,
        dialect,
        model=model,
        headers=config.headers(),
        api_key=config.api_key,
        path=config.endpoint,
        connect_timeout_s=config.connect_timeout_s,
        read_timeout_s=config.read_timeout_s,
        total_timeout_s=config.request_timeout_s,
        reuse_connections=config.reuse_connections,
        verify_tls=not config.insecure,
        kernel_stamps=config.kernel_stamps,
        machines=machines,
    )


def _speak(backend: str, client: httpx.Client) -> tuple[Dialect, Control]:
    if backend in ("prefixlab", "sglang"):
        return NativeDialect(), NativeControl(client)
    if backend == "vllm":
        return CompletionsDialect(continuous_usage=True), VllmControl(client)
    control = find_control(client, backend)
    # Known by its admin API, a server need not be named to tell how many tokens each event brought.
    tells_counts = not isinstance(control, OpenAIControl)
    speaks = CompletionsDialect if backend == "openai" else ChatDialect
    return speaks(continuous_usage=tells_counts), control


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


def _expects_miss(config: TargetConfig, facts: ServerFacts) -> str | None:
    return "--expect-miss" if config.expect_miss else facts.expects_miss


def _wording(config: TargetConfig, facts: ServerFacts, tokenizer: Tokenizer | None, *, chat: bool) -> Wording:
    if chat:
        return WordWording() if tokenizer is None else ChatWording(tokenizer)
    if tokenizer is not None:
        vocabulary = Vocabulary.of_tokenizer(tokenizer)
        limit = config.vocab_size or facts.vocab_size
        return IdWording(vocabulary.below(limit) if limit else vocabulary)
    if config.vocab_size is not None:
        return IdWording(Vocabulary.of_size(config.vocab_size, "as --vocab-size says"))
    if facts.vocab_size is not None:
        return IdWording(Vocabulary.of_size(facts.vocab_size, "as the server says"))
    return IdWording(Vocabulary.of_size(DEFAULT_VOCAB_SIZE, "assumed: give --tokenizer or --vocab-size"))
