"""A server to measure, in a thread: a page-granular prefix cache behind SGLang's, vLLM's and OpenAI's APIs,
which tells the truth or lies as the test says. It computes nothing, so it answers at once."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from prefixlab.core.block_hash import as_token_ids, block_digests
from prefixlab.core.hit_oracle import expected_cached_tokens
from prefixlab.core.text.byte_tokenizer import ByteTokenizer

SGLANG_COUNTERS = {
    "prompt": 'sglang:prompt_tokens_total{model_name="fake"}',
    "cached": 'sglang:cached_tokens_total{cache_source="device",model_name="fake"}',
    "requests": 'sglang:num_requests_total{model_name="fake"}',
}
VLLM_COUNTERS = {
    "prompt": 'vllm:prompt_tokens_total{engine="0",model_name="fake"}',
    "looked_up": 'vllm:prefix_cache_queries_total{engine="0",model_name="fake"}',
    "cached": 'vllm:prefix_cache_hits_total{engine="0",model_name="fake"}',
    "requests": 'vllm:request_success_total{engine="0",finished_reason="length"}',
}


@dataclass
class Behaviour:
    """How the server is now. Tests change it; `FakeServer.reset` makes it this again."""

    page_size: int = 16
    is_vllm: bool = False
    flush: str = "works"
    """works, lies (says yes, keeps everything), refuses (400), missing (404)."""
    reports_cached: bool = True
    extra_cached: int = 0
    """Added to every hit it reports."""
    force_miss: bool = False
    tokens_per_event: int = 1
    continuous_usage: bool = True
    """Whether it honours that option; else OpenAI events do not say how many tokens they bring."""
    stop_after: int | None = None
    """Ends every output early, as an end-of-sequence token would."""
    fault: str | None = None
    """What goes wrong with a request: status, stream_error, cut, reset, garbage, not_sse, abort, silence."""
    num_faults: int | None = None
    """The fault befalls only so many requests; None for all."""
    known_endpoints: frozenset[str] = frozenset({"server_info", "metrics", "models"})
    info: dict[str, Any] = field(default_factory=dict)
    """Overrides fields of /server_info."""
    first_event_s: float = 0.0
    vocab_size: int | None = None
    """Prompts with other token ids are refused (400), as by vLLM."""
    names_tokens: str = "always"
    """How answers name their tokens: always (as each API does), incremental (/generate tells only what is
    new), never."""
    max_pages: int | None = None
    """It forgets what was used longest ago, the ends of prompts first. None: it forgets nothing."""
    num_replicas: int = 1
    """Caches behind this address, which take turns."""
    counts: str = "nothing"
    """What its metrics say of prompts and hits: nothing, all, one (of the first replica alone)."""
    foreign_tokens: int = 0
    """Prompt tokens of somebody else's that it takes in beside each of ours."""
    inserts_late: bool = False
    """A prompt can be found only once its first token was computed, as on a real server."""
    caching_off: bool = False
    """It says so (vLLM's and SGLang's words), looks nothing up and finds nothing."""
    takes_ids: bool = True
    """Else a prompt of token ids is refused (422), as by servers that take text alone."""


class FakeServer:
    def __init__(self) -> None:
        self.url = ""
        self.reset()
        self.tokenizer = ByteTokenizer()

    def reset(self) -> None:
        self.behaviour = Behaviour()
        self._replicas: list[OrderedDict[bytes, None]] = []
        self._asked = 0
        self._fresh: tuple[int, list[bytes]] = (0, [])
        """What the prompt just looked up brings, and to which replica."""
        self.counted: Counter[str] = Counter()
        """prompt, looked_up, cached, requests: of all that its metrics know of."""
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.headers: list[dict[str, str]] = []
        self._good_left: int | None = None
        self.failing_prompt: Any = None
        """Prompts that end with this token id or message get 503."""
        self._failing_length = self._failing_times = 0
        self.num_flushes = 0
        self.in_flight = 0
        self.peak_in_flight = 0

    def break_after(self, num_requests: int) -> None:
        """Answer so many requests more; all others get 503."""
        self._good_left = num_requests

    def fail_prompts_of(self, *, length: int, times: int) -> None:
        """Answer the next `times` prompts of so many token ids with 503, and all others as ever."""
        self._failing_length, self._failing_times = length, times

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/generate", self.generate, methods=["POST"]),
                Route("/behind/a/gateway", self.generate, methods=["POST"]),
                Route("/v1/completions", self.completions, methods=["POST"]),
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/server_info", self.server_info),
                Route("/flush_cache", self.flush, methods=["POST"]),
                Route("/reset_prefix_cache", self.reset_prefix_cache, methods=["POST"]),
                Route("/metrics", self.metrics),
                Route("/version", self.version),
                Route("/v1/models", self.models),
            ]
        )

    # Admin. ---------------------------------------------------------------------------------------------

    def _knows(self, name: str) -> bool:
        return name in self.behaviour.known_endpoints

    async def server_info(self, request: Request) -> Response:
        if not self._knows("server_info"):
            return PlainTextResponse("not found", 404)
        info = {"page_size": self.behaviour.page_size, "vocab_size": 4096, "max_model_len": 100_000}
        info |= {"served_model_name": "fake", "version": "1.2", "force_miss": self.behaviour.force_miss}
        info |= {"disable_radix_cache": True} if self.behaviour.caching_off else {}
        return JSONResponse(info | self.behaviour.info)

    async def metrics(self, request: Request) -> Response:
        if not self._knows("metrics"):
            return PlainTextResponse("not found", 404)
        if not self.behaviour.is_vllm:
            text = "# HELP sglang:x x\n# TYPE sglang:x gauge\nsglang:x 1.0\n"
            return PlainTextResponse(text + self._counters(SGLANG_COUNTERS))
        labels = f'block_size="{self.behaviour.page_size}",num_gpu_blocks="100"'
        labels += f',enable_prefix_caching="{not self.behaviour.caching_off}"'
        name = "vllm:cache_config_info"
        text = f"# HELP {name} x\n# TYPE {name} gauge\n{name}{{{labels}}} 1.0\n"
        return PlainTextResponse(text + self._counters(VLLM_COUNTERS))

    def _counters(self, names: dict[str, str]) -> str:
        if self.behaviour.counts == "nothing":
            return ""
        return "".join(f"{series} {float(self.counted[what])}\n" for what, series in names.items())

    async def version(self, request: Request) -> Response:
        return JSONResponse({"version": "0.99"})

    async def models(self, request: Request) -> Response:
        if not self._knows("models"):
            return PlainTextResponse("not found", 404)
        return JSONResponse({"data": [{"id": "fake", "max_model_len": 100_000}]})

    async def flush(self, request: Request) -> Response:
        self.num_flushes += 1
        how = self.behaviour.flush
        if how == "missing":
            return PlainTextResponse("not found", 404)
        if how == "refuses":
            return PlainTextResponse("not idle", 400)
        if how == "works":
            self._replicas.clear()
        return JSONResponse({"success": True})

    async def reset_prefix_cache(self, request: Request) -> Response:
        self.num_flushes += 1
        how = self.behaviour.flush
        if how == "missing":
            return PlainTextResponse("not found", 404)
        if how == "refuses":
            return JSONResponse({"success": False})  # with status 200, as vLLM does
        if how == "works":
            self._replicas.clear()
        return JSONResponse({"success": True})

    # Requests. ------------------------------------------------------------------------------------------

    def _cached(self, token_ids: list[int]) -> int | None:
        """Look up, then insert, like a server that does one request at a time."""
        behaviour, size = self.behaviour, self.behaviour.page_size
        digests = block_digests(as_token_ids(token_ids), size, b"")
        while len(self._replicas) < behaviour.num_replicas:
            self._replicas.append(OrderedDict())
        replica = self._asked % behaviour.num_replicas
        self._asked += 1
        pages = self._replicas[replica]
        shared = next((i for i, digest in enumerate(digests) if digest not in pages), len(digests))
        self._fresh = (replica, list(digests))
        if not behaviour.inserts_late:
            self._insert(self._fresh)
        hit = expected_cached_tokens(shared * size, len(token_ids), size)
        if behaviour.force_miss or behaviour.caching_off:
            hit = 0
        if behaviour.counts == "all" or (behaviour.counts == "one" and replica == 0):
            looked_up = 0 if behaviour.caching_off else len(token_ids)
            self.counted.update(
                prompt=len(token_ids) + behaviour.foreign_tokens, looked_up=looked_up, cached=hit, requests=1
            )
        told = 0 if behaviour.force_miss else hit + behaviour.extra_cached
        return told if behaviour.reports_cached else None

    def _insert(self, fresh: tuple[int, list[bytes]]) -> None:
        replica, digests = fresh
        if replica >= len(self._replicas):
            return  # emptied meanwhile
        pages = self._replicas[replica]
        for digest in reversed(digests):
            pages[digest] = None
            pages.move_to_end(digest)
        while self.behaviour.max_pages is not None and len(pages) > self.behaviour.max_pages:
            pages.popitem(last=False)

    async def generate(self, request: Request) -> Response:
        body = await self._read(request)
        token_ids = body["input_ids"] if "input_ids" in body else self.tokenizer.encode(body["text"])
        cached = self._cached(token_ids)

        def event(done: int, new: int, finished: bool) -> dict[str, Any]:
            meta = {"prompt_tokens": len(token_ids), "completion_tokens": done, "cached_tokens": cached}
            meta["finish_reason"] = {"type": "length"} if finished else None
            if finished and self.behaviour.fault == "abort":
                meta["finish_reason"] = {"type": "abort", "message": "no pages left"}
            ids = self._named(token_ids, done, new)
            if self.behaviour.names_tokens == "incremental":
                return {"text": "x" * new, "meta_info": meta} | ids
            return {"text": "x" * done, "meta_info": meta} | ids

        if self._is_refused(token_ids):
            return JSONResponse({"error": {"message": "queue is full"}}, 503)
        if len(token_ids) == self._failing_length and self._failing_times:
            self._failing_times -= 1
            return JSONResponse({"error": {"message": "queue is full"}}, 503)
        return self._stream(event, body["sampling_params"]["max_new_tokens"])

    async def completions(self, request: Request) -> Response:
        body = await self._read(request)
        prompt = body["prompt"]
        if (refusal := self._refusal(prompt)) is not None:
            return refusal
        if self._is_refused(prompt):
            return JSONResponse({"error": {"message": "queue is full"}}, 503)
        token_ids = prompt if isinstance(prompt, list) else self.tokenizer.encode(prompt)
        cached = self._cached(token_ids)

        def event(done: int, new: int, finished: bool) -> dict[str, Any]:
            choice = {"index": 0, "text": "x" * new, "finish_reason": "length" if finished else None}
            if body.get("return_token_ids") and self.behaviour.names_tokens != "never":
                choice["token_ids"] = answer_to(token_ids, done)[done - new :]
            return {"choices": [choice]} | self._usage(body, len(token_ids), done, cached)

        return self._stream(event, body["max_tokens"], self._last_usage(len(token_ids), cached))

    async def chat(self, request: Request) -> Response:
        body = await self._read(request)
        if self._is_refused(body["messages"]):
            return JSONResponse({"error": {"message": "queue is full"}}, 503)
        token_ids = self.tokenizer.encode(self.tokenizer.apply_chat_template(body["messages"]))
        cached = self._cached(token_ids)

        def event(done: int, new: int, finished: bool) -> dict[str, Any]:
            delta = {"role": "assistant", "content": ""} if not done else {"content": "x" * new}
            choice = {"index": 0, "delta": delta, "finish_reason": "length" if finished else None}
            return {"choices": [choice]} | self._usage(body, len(token_ids), done, cached)

        usage = self._last_usage(len(token_ids), cached)
        return self._stream(event, body["max_completion_tokens"], usage, opens_with_role=True)

    def _named(self, prompt: list[int], done: int, new: int) -> dict[str, Any]:
        how = self.behaviour.names_tokens
        if how == "never":
            return {}
        ids = answer_to(prompt, done)
        return {"output_ids": ids[done - new :] if how == "incremental" else ids}

    def _refusal(self, prompt: list[int] | str) -> Response | None:
        limit = self.behaviour.vocab_size
        if isinstance(prompt, str):
            return None
        if not self.behaviour.takes_ids:
            return JSONResponse({"detail": "Input should be a valid string"}, 422)
        if limit is not None and max(prompt) >= limit:
            return JSONResponse({"error": {"message": f"Token id {max(prompt)} is out of vocabulary"}}, 400)
        return None

    def _usage(self, body: dict[str, Any], prompt: int, done: int, cached: int | None) -> dict[str, Any]:
        wanted = body["stream_options"].get("continuous_usage_stats")
        return {"usage": usage_of(prompt, done, cached)} if wanted and self.behaviour.continuous_usage else {}

    def _last_usage(self, prompt: int, cached: int | None) -> Any:
        return lambda done: {"choices": [], "usage": usage_of(prompt, done, cached)}

    async def _read(self, request: Request) -> dict[str, Any]:
        body: dict[str, Any] = await request.json()
        self.bodies.append(body)
        self.keys.append(request.headers.get("authorization", ""))
        self.headers.append(dict(request.headers))
        return body

    def _fault(self) -> str | None:
        if self._good_left is not None:
            self._good_left -= 1
            if self._good_left < 0:
                return "status"
        if self.behaviour.num_faults is not None:
            if not self.behaviour.num_faults:
                return None
            self.behaviour.num_faults -= 1
        return self.behaviour.fault

    def _is_refused(self, prompt: Any) -> bool:
        return self.failing_prompt is not None and prompt[-1] == self.failing_prompt

    def _stream(
        self, event: Any, length: int, last: Any = None, *, opens_with_role: bool = False
    ) -> Response:
        fault, fresh = self._fault(), self._fresh
        if fault == "status":
            return JSONResponse({"error": {"message": "queue is full"}}, 503)
        if fault == "not_sse":
            return JSONResponse({"text": "all at once"})
        length = min(length, self.behaviour.stop_after or length)

        async def events() -> AsyncIterator[bytes]:
            self.in_flight += 1
            self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
            try:
                await asyncio.sleep(self.behaviour.first_event_s)
                if self.behaviour.inserts_late:
                    self._insert(fresh)
                if fault == "silence":
                    await asyncio.sleep(30)
                if opens_with_role:
                    yield sse(event(0, 0, False))
                done = 0
                while done < length:
                    new = min(self.behaviour.tokens_per_event, length - done)
                    done += new
                    yield sse(event(done, new, done == length and fault != "cut"))
                    await asyncio.sleep(0)
                    if fault == "stream_error":
                        yield sse({"error": {"message": "out of pages"}})
                    if fault == "reset":
                        raise ConnectionResetError
                    if fault == "garbage":
                        yield b"data: {not json\n\n"
                if last is not None and fault is None:
                    yield sse(last(done))
                if fault != "cut":
                    yield b"data: [DONE]\n\n"
            finally:
                self.in_flight -= 1

        return StreamingResponse(events(), media_type="text/event-stream")


def answer_to(prompt: list[int], num_tokens: int) -> list[int]:
    """The tokens that it answers with: others for every prompt."""
    return [1000 + (sum(prompt) + 7 * place) % 900 for place in range(num_tokens)]


def usage_of(prompt: int, done: int, cached: int | None) -> dict[str, Any]:
    details = None if cached is None else {"cached_tokens": cached}
    return {"prompt_tokens": prompt, "completion_tokens": done, "prompt_tokens_details": details}


def sse(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


@contextmanager
def running(server: FakeServer) -> Iterator[FakeServer]:
    """Serve on a free port, in a thread, until the block ends."""
    config = uvicorn.Config(server.app(), port=0, log_level="critical", ws="none", lifespan="off")
    uvicorn_server = uvicorn.Server(config)
    started = threading.Event()
    startup = uvicorn_server.startup

    async def startup_and_tell(sockets: Any = None) -> None:
        await startup(sockets)
        started.set()

    uvicorn_server.startup = startup_and_tell  # type: ignore[method-assign]
    thread = threading.Thread(target=uvicorn_server.run, daemon=True)
    thread.start()
    assert started.wait(10)
    server.url = f"http://127.0.0.1:{uvicorn_server.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        uvicorn_server.should_exit = uvicorn_server.force_exit = True
        thread.join(10)
