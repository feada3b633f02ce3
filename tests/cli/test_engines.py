"""Which engine flags ask for, and that a setting for the other kind is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import pytest

from prefixlab.cache.config import CacheConfig
from prefixlab.cli.engines import ENGINE_CONFIGS, SIM_HONOURS, choose_engine
from prefixlab.cli.main import server_configs
from prefixlab.core.clock import MonotonicClock
from prefixlab.core.errors import ConfigError
from prefixlab.engine.config import EngineConfig
from prefixlab.simulator.config import SimConfig
from prefixlab.simulator.engine import SimulatedEngine

OTHER_VALUES: dict[str, Any] = {
    "revision": "v1",
    "load_format": "dummy",
    "dtype": "float32",
    "kv_memory_bytes": 2**30,
    "sim_profile": "x.json",
    "sim_speedup": 2.0,
    "sim_vocab_size": 5000,
    "sim_eos_rate": 0.5,
    "sim_fault": ("null-cached",),
}


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(SimConfig)])
def test_a_setting_of_the_simulated_model_is_refused_for_a_real_one(name: str) -> None:
    flag = "--" + name.replace("_", "-")
    with pytest.raises(ConfigError, match=f"{flag} needs --model sim; --model tiny"):
        choose_engine({name: OTHER_VALUES.get(name, 1.0)})


@pytest.mark.parametrize(
    "name",
    [
        field.name
        for field in dataclasses.fields(EngineConfig)
        if field.name not in (*SIM_HONOURS, "device")  # of which there is only one
    ],
)
def test_a_setting_of_a_real_model_is_refused_for_the_simulated_one(name: str) -> None:
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} is for a real model"):
        choose_engine({"model": "sim", name: OTHER_VALUES[name]})


def test_the_simulated_model_speaks_bytes_only() -> None:
    assert choose_engine({"model": "sim", "tokenizer": "byte"}).is_simulated
    with pytest.raises(ConfigError, match="--tokenizer gpt2"):
        choose_engine({"model": "sim", "tokenizer": "gpt2"})


def test_what_was_given_is_what_is_loaded_and_shown() -> None:
    given = {
        "model": "sim",
        "seed": 3,
        "max_model_len": 4096,
        "page_size": 32,
        "num_pages": 99,
        "sim_speedup": float("inf"),
        "sim_vocab_size": 5000,
    }
    choice = choose_engine(given)
    engine = choice.load(MonotonicClock())
    assert isinstance(engine, SimulatedEngine)
    assert (engine.seed, engine.max_model_len, engine.num_pages, engine.page_size) == (3, 4096, 99, 32)
    assert engine.runner.vocab_size == engine.tokenizer.vocab_size == 5000
    shown = choice.settings()
    assert {name: shown[name] for name in given} == given | {"sim_speedup": "inf"}
    assert shown["sim_step_times"]["provenance"]["machine"].startswith("1 x NVIDIA H200")
    assert "dtype" not in shown
    assert msgspec.json.decode(msgspec.json.encode(shown)) == shown


def test_a_real_engine_shows_nothing_of_the_simulated_one() -> None:
    shown = choose_engine({"page_size": 8}).settings()
    assert (shown["model"], shown["dtype"], shown["page_size"]) == ("tiny", "auto", 8)
    assert not [name for name in shown if name.startswith("sim_")]


def test_the_environment_speaks_for_every_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(ENGINE_CONFIGS) <= set(server_configs())
    monkeypatch.setenv("PREFIXLAB_MODEL", "sim")
    monkeypatch.setenv("PREFIXLAB_SIM_STEP_MS", "3")
    choice = choose_engine({})
    assert choice.is_simulated and choice.sim.sim_step_ms == 3.0
    assert choice.cache == CacheConfig()
