"""The simulated server on a real port, in a thread, with faults at its edge."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import uvicorn

from prefixlab.cli.engines import choose_engine
from prefixlab.core.clock import MonotonicClock, sleep
from prefixlab.server.app import build_app
from prefixlab.server.config import ServerConfig
from prefixlab.server.launch import make_worker

API_KEY = "let-me-in"


@contextlib.contextmanager
def serving_sim(*faults: str, api_key: str | None = None, **settings: object) -> Iterator[str]:
    """Its URL. `settings` are those of `prefixlab serve`."""
    choice = choose_engine(
        {"model": "sim", "page_size": 16, "sim_speedup": 50.0, "sim_fault": faults, **settings}
    )
    clock, config = MonotonicClock(), ServerConfig(api_key=api_key)
    worker = make_worker(
        choice.load(clock),
        cache_config=choice.cache,
        scheduler_config=choice.scheduler,
        server_config=config,
        clock=clock,
        settings=choice.settings(),
    )
    app, edge = build_app(worker), choice.edge(api_key)
    server = uvicorn.Server(
        uvicorn.Config(
            app if edge is None else edge.wrap(app), port=0, lifespan="on", log_config=None, access_log=False
        )
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        sleep(0.005)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
