"""A real server on a real port, in a thread, around a fake runner that can be held and broken."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import msgspec
import uvicorn

from prefixlab.cache.config import CacheConfig
from prefixlab.core.batch import Batch, StepResult, TokenLogprobs
from prefixlab.core.clock import MonotonicClock, sleep
from prefixlab.core.request import Request
from prefixlab.core.text.byte_tokenizer import ByteTokenizer
from prefixlab.scheduler.config import SchedulerConfig
from prefixlab.server.app import build_app
from prefixlab.server.config import ServerConfig
from prefixlab.server.kv_publisher import KVPublisher
from prefixlab.server.launch import make_worker
from prefixlab.server.worker import Worker
from tests.fakes import FakeRunner, oracle_tokens

VOCAB_SIZE = 4096
MODEL = "fake"
TIMEOUT_S = 30.0
"""For what must happen: reached only when a test fails."""


class Runner:
    """FakeRunner, plus logprobs for who asks, a gate in front of every step, errors on demand, and a memory
    of whom it ran."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        self._inner = FakeRunner(num_pages=num_pages, page_size=page_size, vocab_size=VOCAB_SIZE)
        self._changed = threading.Condition()
        self._is_held = False
        self._num_permits = 0
        self._num_arrived = 0
        self.errors: list[Exception] = []
        """Raised by the next steps, one each."""
        self.requests: dict[str, Request] = {}
        """Every request that came to a step, by id."""

    @property
    def vocab_size(self) -> int:
        return self._inner.vocab_size

    def run(self, batch: Batch) -> StepResult:
        self.requests.update({request.request_id: request for request in batch.requests})
        self._pass_gate()
        if self.errors:
            raise self.errors.pop(0)
        result = self._inner.run(batch)
        first = 0
        for row, request in enumerate(batch.requests):
            length = int(batch.lengths[row])
            ids = batch.input_ids[first : first + length].tolist()
            first += length
            num_top = request.sampling.num_logprobs
            if num_top is None:
                continue
            if batch.samples[row]:
                result.logprobs[row] = logprobs_of(int(result.token_ids[row]), num_top)
            if request.return_prompt_logprobs:
                start, end = int(batch.starts[row]), int(batch.starts[row]) + length
                known = request.prompt_token_ids[start + 1 : end + 1].tolist()
                entries = [logprobs_of(token, num_top) for token in known]
                if start == 0:
                    entries.insert(0, TokenLogprobs(ids[0], None))
                result.prompt_logprobs[row] = entries
        return result

    def _pass_gate(self) -> None:
        with self._changed:
            if not self._is_held:
                return
            self._num_arrived += 1
            self._changed.notify_all()
            opened = self._changed.wait_for(lambda: not self._is_held or self._num_permits > 0, TIMEOUT_S)
            assert opened, "a test held the runner and never let go"
            self._num_permits -= 1

    # The test's side. ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Steps wait at the gate inside the block; `let` lets them through one by one."""
        with self._changed:
            self._is_held, self._num_permits, self._num_arrived = True, 0, 0
        try:
            yield
        finally:
            with self._changed:
                self._is_held = False
                self._changed.notify_all()

    def let(self, num_steps: int = 1) -> None:
        with self._changed:
            self._num_permits += num_steps
            self._changed.notify_all()

    def wait_for_step(self) -> None:
        """Until a step has come to the gate."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._num_arrived > 0, TIMEOUT_S), "no step came"
            self._num_arrived -= 1


def logprobs_of(token: int, num_top: int) -> TokenLogprobs:
    """What the fake says of a token: a number made from it, and neighbours that are likelier."""
    top = tuple(((token + i) % VOCAB_SIZE, -0.25 * i) for i in range(1, num_top + 1))
    return TokenLogprobs(token, -1.0 - token / VOCAB_SIZE, top)


@dataclass
class Served:
    """A server that runs, and a client for it."""

    worker: Worker
    runner: Runner
    client: httpx.Client
    url: str
    pool: ThreadPoolExecutor
    """For requests that are under way while the test does something else."""

    def wait_for_calls(self, num_calls: int) -> None:
        """Until that many HTTP requests have handed their work to the loop and not been answered."""
        self.wait_until(lambda: len(self.worker.loop._calls) == num_calls)

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        for _ in range(int(TIMEOUT_S / 0.002)):
            if is_so():
                return
            sleep(0.002)
        raise AssertionError("it never came to that")

    def generate(self, input_ids: list[Any] | None = None, num_tokens: int = 4, **body: Any) -> Any:
        """POST /generate, greedy as every fake is, and its JSON."""
        sampling = {"max_new_tokens": num_tokens, "ignore_eos": True} | body.pop("sampling_params", {})
        given = {"input_ids": input_ids} if input_ids is not None else {}
        return self.post("/generate", {**given, "sampling_params": sampling, **body})

    def post(self, path: str, body: Any, status: int = 200) -> Any:
        response = self.client.post(path, json=body)
        assert response.status_code == status, response.text
        return response.json()

    def get(self, path: str, status: int = 200) -> Any:
        response = self.client.get(path)
        assert response.status_code == status, response.text
        return response.json()

    def events(self, path: str, body: dict[str, Any]) -> list[Any]:
        """The events of a stream, which must end as it should."""
        response = self.client.post(path, json=body | {"stream": True})
        assert response.status_code == 200, response.text
        assert response.headers["content-type"].startswith("text/event-stream")
        payloads = [part.removeprefix("data: ") for part in response.text.split("\n\n") if part]
        assert payloads.pop() == "[DONE]"
        return [msgspec.json.decode(payload) for payload in payloads]

    def wait_until_idle(self) -> dict[str, Any]:
        """Until no request holds a page; the final /server_info."""
        info: dict[str, Any] = {}
        for _ in range(int(TIMEOUT_S / 0.01)):
            info = self.get("/server_info")
            if info["is_idle"] and info["tokens"]["in_use"] == 0:
                return info
            sleep(0.01)
        raise AssertionError(f"pages did not come back: {info}")


@dataclass(frozen=True)
class FakeEngine:
    """An engine around a runner of the test's."""

    runner: Runner
    tokenizer: ByteTokenizer
    max_model_len: int
    num_pages: int
    model_name: str = MODEL

    @property
    def eos_token_ids(self) -> frozenset[int]:
        return self.tokenizer.eos_token_ids

    def describe(self) -> str:
        return self.model_name


@contextlib.contextmanager
def serving(
    *,
    num_pages: int = 256,
    page_size: int = 4,
    max_model_len: int = 512,
    cache: CacheConfig | None = None,
    publisher: KVPublisher | None = None,
    scheduler: dict[str, Any] | None = None,
    **server: Any,
) -> Iterator[Served]:
    """A server with these settings; it is stopped, and checked, at the end."""
    cache = cache or CacheConfig(page_size=page_size)
    runner = Runner(num_pages, cache.page_size)
    tokenizer = ByteTokenizer(VOCAB_SIZE)
    worker = make_worker(
        FakeEngine(runner, tokenizer, max_model_len, num_pages),
        cache_config=cache,
        scheduler_config=SchedulerConfig(**(scheduler or {})),
        server_config=ServerConfig(**server),
        clock=MonotonicClock(),
        publisher=publisher,
        settings={"cache": cache.cache, "force_miss": cache.force_miss},
    )
    with listening(worker) as url:
        headers = {}
        key = worker.config.admin_api_key or worker.config.api_key
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        with (
            httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_S) as client,
            ThreadPoolExecutor(8) as pool,
        ):
            yield Served(worker, runner, client, url, pool)


@contextlib.contextmanager
def listening(worker: Worker) -> Iterator[str]:
    """The worker behind HTTP, in a thread; its URL."""
    config = uvicorn.Config(
        build_app(worker),
        port=0,
        lifespan="on",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=5,
    )
    uvicorn_server = uvicorn.Server(config)
    thread = threading.Thread(target=uvicorn_server.run, name="uvicorn")
    thread.start()
    try:
        while not uvicorn_server.started:
            assert thread.is_alive(), "the server did not start"
            sleep(0.005)
        port = uvicorn_server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        uvicorn_server.should_exit = True
        thread.join(TIMEOUT_S)
        assert not thread.is_alive(), "the server did not stop"


def oracle(prompt: list[int], num_tokens: int, **stops: Any) -> list[int]:
    """The tokens the fake must give, worked out without cache, pages or batches."""
    return oracle_tokens(prompt, num_tokens, vocab_size=VOCAB_SIZE, **stops)


def text_of(token_ids: list[int]) -> str:
    return ByteTokenizer(VOCAB_SIZE).decode(token_ids)
