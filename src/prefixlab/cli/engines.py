"""Which engine the flags ask for: a model on torch, or the simulated one, which needs no more than the base.

Owns the rule of which setting is for which of them: one given for the other is refused by name.

Invariant: nothing of torch is imported before the engine is loaded, and nothing at all of it for `sim`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefixlab.cache.config import CacheConfig
from prefixlab.core.config import as_public_dict, resolve
from prefixlab.core.errors import ConfigError
from prefixlab.engine.config import EngineConfig
from prefixlab.scheduler.config import SchedulerConfig
from prefixlab.simulator.config import SIM, SimConfig

if TYPE_CHECKING:
    from prefixlab.core.clock import MonotonicClock
    from prefixlab.server.launch import Edge, Engine

ENGINE_CONFIGS: tuple[type, ...] = (EngineConfig, CacheConfig, SchedulerConfig, SimConfig)
"""What describes an engine, wherever it runs: in a server, embedded, or in this process."""

SIM_HONOURS = ("model", "seed", "max_model_len", "tokenizer", "deterministic")
"""Settings of EngineConfig that mean something without a model. It is always deterministic."""


@dataclass(frozen=True)
class EngineChoice:
    """An engine to be loaded."""

    engine: EngineConfig
    sim: SimConfig
    cache: CacheConfig
    scheduler: SchedulerConfig

    @property
    def is_simulated(self) -> bool:
        return self.engine.model == SIM

    def load(self, clock: MonotonicClock) -> Engine:
        """Raises what loading it raises: ConfigError, EngineError."""
        if self.is_simulated:
            from prefixlab.simulator.engine import load_simulated

            return load_simulated(
                self.sim,
                page_size=self.cache.page_size,
                num_pages=self.cache.num_pages,
                max_model_len=self.engine.max_model_len,
                seed=self.engine.seed,
                clock=clock,
            )
        from prefixlab.engine.load import load_engine

        return load_engine(
            self.engine,
            page_size=self.cache.page_size,
            num_pages=self.cache.num_pages,
            max_running_requests=self.scheduler.max_running_requests,
            clock=clock,
        )

    def edge(self, api_key: str | None) -> Edge | None:
        """What goes wrong on purpose between the network and the API; None if nothing does."""
        if not self.sim.sim_fault:
            return None
        from prefixlab.simulator.faults.edge import FaultyEdge

        return FaultyEdge(
            self.sim.sim_fault,
            vocab_size=self.sim.sim_vocab_size,
            seed=self.engine.seed,
            api_key=api_key,
        )

    def settings(self) -> dict[str, Any]:
        """All that was resolved, as plain data; of the simulated model also its step times.

        Raises:
            ConfigError: its profile cannot be used.
        """
        shown = as_public_dict(self.cache) | as_public_dict(self.scheduler)
        engine = as_public_dict(self.engine)
        if not self.is_simulated:
            return engine | shown
        import msgspec

        from prefixlab.simulator.profile import profile_of

        sim = {name: _as_json(value) for name, value in as_public_dict(self.sim).items()}
        sim["sim_step_times"] = msgspec.to_builtins(profile_of(self.sim))
        return {name: engine[name] for name in SIM_HONOURS} | sim | shown


def choose_engine(given: Mapping[str, Any]) -> EngineChoice:
    """From flags (as `vars(args)`) and environment.

    Raises:
        ConfigError: a setting that cannot be used, or that is for the other kind of engine.
    """
    engine, sim = resolve(EngineConfig, given), resolve(SimConfig, given)
    if engine.model != SIM:
        for name in _changed(sim):
            raise ConfigError(f"{_flag(name)} needs --model {SIM}; --model {engine.model} is not simulated")
    else:
        for name in _changed(engine):
            if name not in SIM_HONOURS:
                raise ConfigError(f"{_flag(name)} is for a real model; --model {SIM} has none")
        if engine.tokenizer not in (None, "byte"):
            raise ConfigError(f"--tokenizer {engine.tokenizer}: --model {SIM} speaks 'byte' only")
    return EngineChoice(engine, sim, resolve(CacheConfig, given), resolve(SchedulerConfig, given))


def _changed(config: Any) -> list[str]:
    """Fields that are not at their default."""
    return [
        field.name for field in dataclasses.fields(config) if getattr(config, field.name) != field.default
    ]


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _as_json(value: Any) -> Any:
    """JSON has no infinity and no tuples."""
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, float) and math.isinf(value) else value
