"""From settings and an engine to a running server: the composition root.

Owns the order in which things start and stop: bind (so that a taken port fails before a model is loaded),
load, serve, say so; on SIGTERM or SIGINT take nothing new, let what runs finish, stop. A second signal stops
at once. Which engine it is, a real one or a simulated one, is the caller's choice.

Invariant: the ready line is printed once, when requests are answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import uvicorn
from starlette.types import ASGIApp

from prefixlab.cache.config import CacheConfig
from prefixlab.cache.manager import CacheManager
from prefixlab.core.clock import Clock, MonotonicClock
from prefixlab.core.config import as_public_dict
from prefixlab.core.errors import ConfigError
from prefixlab.core.seams import Runner, Tokenizer
from prefixlab.scheduler.config import SchedulerConfig
from prefixlab.scheduler.scheduler import Scheduler
from prefixlab.server.app import build_app
from prefixlab.server.config import READY_PREFIX, ServerConfig
from prefixlab.server.kv_publisher import KVPublisher, make_publisher, parse_kv_events_config
from prefixlab.server.loop import EngineLoop
from prefixlab.server.metrics import ServerMetrics
from prefixlab.server.worker import Worker

log = logging.getLogger(__name__)

KEEP_ALIVE_S = 75
"""How long a connection may be idle. Longer than clients keep theirs, so that it is they who close."""
CLOSE_TIMEOUT_S = 5
"""How long answers already made may take to be written at the end."""


class Engine(Protocol):
    """A model that is ready to run, and what is to be known of it. Made by `engine/load.py`, or simulated.

    Attributes:
        model_name: as clients name it.
        max_model_len: longest prompt plus output, in tokens.
        num_pages: pages of KV the runner has.
    """

    @property
    def runner(self) -> Runner: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def model_name(self) -> str: ...
    @property
    def max_model_len(self) -> int: ...
    @property
    def num_pages(self) -> int: ...
    @property
    def eos_token_ids(self) -> frozenset[int]: ...

    def describe(self) -> str:
        """One line for a log."""
        ...


class Edge(Protocol):
    """What stands between the network and the app, on purpose; see `simulator/faults/edge.py`.

    Attributes:
        accept_every_s: connections are taken so far apart; None: as they come.
    """

    @property
    def accept_every_s(self) -> float | None: ...

    def wrap(self, app: ASGIApp) -> ASGIApp: ...

    def describe(self) -> str:
        """One line for a log."""
        ...


LoadEngine = Callable[[MonotonicClock], Engine]
"""Makes the engine, on the clock it shall run on."""


def serve(
    load_engine: LoadEngine,
    cache_config: CacheConfig,
    scheduler_config: SchedulerConfig,
    server_config: ServerConfig,
    settings: Mapping[str, Any],
    *,
    edge: Edge | None = None,
) -> int:
    """Serve until told to stop; returns the exit code.

    Args:
        settings: the engine's, cache's and scheduler's, secrets masked, for `/server_info`.

    Raises:
        ConfigError: settings that cannot be used, an address that is taken.
        EngineError: the model cannot be loaded.
    """
    _set_up_logging(server_config.log_level)
    listener = _bind(server_config.host, server_config.port)
    publisher = make_publisher(parse_kv_events_config(server_config.kv_events_config))
    clock = MonotonicClock()
    engine = load_engine(clock)
    log.info("%s", engine.describe())
    if edge is not None:
        log.warning("%s", edge.describe())
    worker = make_worker(
        engine,
        cache_config=cache_config,
        scheduler_config=scheduler_config,
        server_config=server_config,
        clock=clock,
        publisher=publisher,
        settings={**settings, **as_public_dict(server_config)},
    )
    _Server(worker, listener, edge).run(sockets=[listener])
    if publisher is not None:
        publisher.close()
    if worker.loop.is_running:
        # A step that does not end. Python would wait for it, or crash in it, on the way out.
        log.error("the engine did not stop; leaving without it")
        sys.stdout.flush()
        os._exit(1)
    return 0


def make_worker(
    engine: Engine,
    *,
    cache_config: CacheConfig,
    scheduler_config: SchedulerConfig,
    server_config: ServerConfig,
    clock: Clock,
    publisher: KVPublisher | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Worker:
    """Cache, scheduler, loop and metrics around an engine, ready for `build_app`."""
    cache = CacheManager(
        cache_config,
        num_pages=engine.num_pages,
        max_rows=scheduler_config.max_running_requests,
        max_tokens_per_row=engine.max_model_len,
        events=publisher,
    )
    metrics = ServerMetrics()
    scheduler = Scheduler(
        scheduler_config, cache, clock, max_model_len=engine.max_model_len, listener=metrics.on_step
    )
    loop = EngineLoop(scheduler, cache, engine.runner, clock, metrics)
    metrics.watch(lambda: loop.stats, publisher)
    return Worker(
        config=server_config,
        loop=loop,
        metrics=metrics,
        tokenizer=engine.tokenizer,
        clock=clock,
        model_name=server_config.served_model_name or engine.model_name,
        vocab_size=engine.runner.vocab_size,
        eos_token_ids=engine.eos_token_ids,
        max_model_len=engine.max_model_len,
        page_size=cache_config.page_size,
        num_pages=engine.num_pages,
        supports_force_miss=cache.supports_force_miss,
        honours_priority="priority" in (scheduler_config.schedule_policy, cache_config.eviction_policy),
        settings=dict(settings or {}),
        kv_events=None if publisher is None else publisher.describe(cache_config.page_size),
    )


class _Server(uvicorn.Server):
    """uvicorn, but a signal drains first: while what runs finishes, new requests are told 503 and health says
    so, instead of meeting a closed port."""

    def __init__(self, worker: Worker, listener: socket.socket, edge: Edge | None) -> None:
        app: ASGIApp = build_app(worker)
        super().__init__(
            uvicorn.Config(
                app if edge is None else edge.wrap(app),
                lifespan="on",
                log_config=None,
                access_log=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=CLOSE_TIMEOUT_S,
            )
        )
        self._worker = worker
        self._listener = listener
        self._accept_every_s = None if edge is None else edge.accept_every_s
        self._accepting: asyncio.Task[None] | None = None
        self._drain_wanted = False
        self._drain: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets if self._accept_every_s is None else [])
        if self._accept_every_s is not None:
            self._accepting = asyncio.create_task(self._accept_slowly(self._accept_every_s))
        if not self.should_exit:
            _announce(self._worker, self._listener)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._accepting is not None:
            self._accepting.cancel()
        await super().shutdown(sockets)

    async def _accept_slowly(self, every_s: float) -> None:
        """With next to no backlog the kernel keeps connections waiting that are not taken."""
        loop = asyncio.get_running_loop()
        protocol_class: Any = self.config.http_protocol_class
        self._listener.setblocking(False)
        self._listener.listen(0)
        while True:
            connection, _ = await loop.sock_accept(self._listener)
            protocol = partial(
                protocol_class,
                config=self.config,
                server_state=self.server_state,
                app_state=self.lifespan.state,
            )
            await loop.connect_accepted_socket(protocol, connection)
            await asyncio.sleep(every_s)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # In a signal handler: only flags. `on_tick` runs ten times a second.
        if self._drain_wanted:
            # Whatever hangs: a step, a client that does not read. Nothing here needs to be put in order.
            log.warning("a second signal: stopping at once")
            os._exit(128 + sig)
        self._drain_wanted = True
        self._worker.loop.refuse_new()

    async def on_tick(self, counter: int) -> bool:
        if self._drain_wanted and self._drain is None:
            timeout_s = self._worker.config.drain_timeout_s
            log.warning(
                "stopping: no new requests; %d under way get %g s to finish (a second signal stops at once)",
                self._worker.loop.num_unfinished,
                timeout_s,
            )
            self._drain = asyncio.create_task(self._worker.loop.drain(timeout_s))
        if self._drain is not None and self._drain.done():
            self._drain.result()
            self.should_exit = True
        return await super().on_tick(counter)


def _set_up_logging(level_name: str) -> None:
    level = getattr(logging, level_name.upper())
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if level > logging.DEBUG:
        logging.getLogger("uvicorn").setLevel(max(level, logging.WARNING))  # it says what we say ourselves


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with contextlib.ExitStack() as on_failure:
            listener = on_failure.enter_context(socket.socket(family, kind, protocol))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            on_failure.pop_all()
            return listener
    except OSError as error:
        raise ConfigError(f"--host {host} --port {port}: {error}") from None


def _announce(worker: Worker, listener: socket.socket) -> None:
    config = worker.config
    port = listener.getsockname()[1]
    # A wildcard is no address to connect to.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.host, config.host)
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    if config.ready_file is not None:
        path = Path(config.ready_file)
        half = path.with_name(path.name + ".tmp")
        half.write_text(json.dumps({"url": url, "host": host, "port": port, "pid": os.getpid()}))
        half.replace(path)  # so that nobody reads half of it
    log.info("%s takes requests at %s", worker.model_name, url)
    sys.stdout.write(f"{READY_PREFIX}{url}\n")
    sys.stdout.flush()
