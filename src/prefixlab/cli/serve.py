"""`prefixlab serve`: one worker behind HTTP. Flags are made from the four configs it is composed of.

Owns the verb only; `server/launch.py` does the work.
"""

from __future__ import annotations

import argparse

from prefixlab.cache.config import CacheConfig
from prefixlab.core.config import add_flags, resolve
from prefixlab.engine.config import EngineConfig
from prefixlab.scheduler.config import SchedulerConfig
from prefixlab.server.config import ServerConfig

SUMMARY = "serve a model over HTTP, with a prefix cache"


def configure(parser: argparse.ArgumentParser) -> None:
    add_flags(parser, EngineConfig, "engine")
    add_flags(parser, CacheConfig, "cache")
    add_flags(parser, SchedulerConfig, "scheduler")
    add_flags(parser, ServerConfig, "server")


def run(args: argparse.Namespace) -> int:
    from prefixlab.server.launch import serve

    given = vars(args)
    return serve(
        resolve(EngineConfig, given),
        resolve(CacheConfig, given),
        resolve(SchedulerConfig, given),
        resolve(ServerConfig, given),
    )
