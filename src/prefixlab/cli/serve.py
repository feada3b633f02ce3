"""`prefixlab serve`: one worker behind HTTP. Flags are made from the configs it is composed of.

Owns the verb only: `engines.py` knows which engine is asked for, `server/launch.py` does the work.
"""

from __future__ import annotations

import argparse

from prefixlab.cache.config import CacheConfig
from prefixlab.core.config import add_flags, resolve
from prefixlab.engine.config import EngineConfig
from prefixlab.scheduler.config import SchedulerConfig
from prefixlab.server.config import ServerConfig
from prefixlab.simulator.config import SimConfig

SUMMARY = "serve a model over HTTP, with a prefix cache; --model sim needs no model"


def configure(parser: argparse.ArgumentParser) -> None:
    add_flags(parser, EngineConfig, "engine")
    add_flags(parser, CacheConfig, "cache")
    add_flags(parser, SchedulerConfig, "scheduler")
    add_flags(parser, ServerConfig, "server")
    add_flags(parser, SimConfig, "simulated model, with --model sim")


def run(args: argparse.Namespace) -> int:
    from prefixlab.cli.engines import choose_engine
    from prefixlab.server.launch import serve

    given = vars(args)
    server = resolve(ServerConfig, given)
    choice = choose_engine(given)
    edge = choice.edge(server.api_key)
    return serve(choice.load, choice.cache, choice.scheduler, server, choice.settings(), edge=edge)
