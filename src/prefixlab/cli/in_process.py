"""The engine in this process, as flags ask for it: for benchmarks without HTTP in between.

Owns which of a benchmark's flags are the engine's. The target itself is `server/in_process.py`.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefixlab.server.in_process import EngineTarget

SHARED = ("model", "tokenizer", "page_size")
"""Flags that a benchmark has for any server, and that are the engine's settings where there is an engine."""


@contextmanager
def in_process_target(args: argparse.Namespace, *bench_configs: type) -> Iterator[EngineTarget]:
    """Load the engine that flags and environment ask for, and run it for as long as the block.

    Args:
        bench_configs: what the benchmark's own flags are made of; a flag of theirs is not the engine's (their
            `--seed`, say), but for those in SHARED.

    Raises:
        ConfigError: settings that cannot be used.
        EngineError: the model cannot be loaded.
    """
    from prefixlab.cli.engines import choose_engine
    from prefixlab.core.clock import MonotonicClock
    from prefixlab.core.errors import ConfigError
    from prefixlab.server.in_process import engine_target

    taken = {field.name for config in bench_configs for field in dataclasses.fields(config)}
    given = {name: value for name, value in vars(args).items() if name in SHARED or name not in taken}
    choice, clock = choose_engine(given), MonotonicClock()
    if choice.sim.sim_fault:
        raise ConfigError("--sim-fault is at the edge of the HTTP API, which --backend in-process goes round")
    settings = choice.settings()
    with engine_target(choice.load(clock), choice.cache, choice.scheduler, clock, settings) as target:
        yield target
