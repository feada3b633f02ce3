from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from prefixlab.core.errors import ConfigError
from prefixlab.core.step_time.built_in import PROFILES
from prefixlab.core.step_time.model import LinearStepTime
from prefixlab.core.step_time.profile import Provenance, Spread, StepTimeProfile, write_profile
from prefixlab.simulator.config import DEFAULT_PROFILE, SimConfig
from prefixlab.simulator.profile import profile_of


def test_the_default_is_a_built_in_profile() -> None:
    assert profile_of(SimConfig()) == PROFILES[DEFAULT_PROFILE]


def test_flags_replace_coefficients_in_the_units_of_their_names() -> None:
    config = SimConfig(
        sim_step_ms=10.0,
        sim_prefill_tokens_per_s=20_000.0,
        sim_prefill_attention_ns=2.0,
        sim_decode_ms_per_row=0.5,
        sim_decode_context_ns=100.0,
    )
    expected = {
        "fixed_s": 0.01,
        "prefill_token_s": 5e-5,
        "prefill_attention_s": 2e-9,
        "decode_row_s": 5e-4,
        "decode_context_s": 1e-7,
    }
    step_time = profile_of(config).step_time
    assert {name: getattr(step_time, name) for name in expected} == pytest.approx(expected)


def test_a_file_is_read_and_what_flags_change_of_it_is_told(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    spread = Spread(num_samples=9, median_error=0.1, max_error=0.2)
    provenance = Provenance(machine="m", model="n", method="measured", spread=spread)
    mine = StepTimeProfile(provenance=provenance, step_time=LinearStepTime(fixed_s=1.0, decode_row_s=2.0))
    write_profile(path, mine)
    assert profile_of(SimConfig(sim_profile=str(path))) == mine
    changed = profile_of(SimConfig(sim_profile=str(path), sim_step_ms=0.0))
    assert changed.step_time == LinearStepTime(fixed_s=0.0, decode_row_s=2.0)
    assert changed.provenance.method == "measured; set by flags: fixed_s"
    assert changed.provenance.spread is None


def test_prompt_tokens_may_cost_nothing() -> None:
    assert profile_of(SimConfig(sim_prefill_tokens_per_s=math.inf)).step_time.prefill_token_s == 0.0


def test_a_profile_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(ConfigError, match=r"--sim-profile nope: .*h200"):
        profile_of(SimConfig(sim_profile="nope"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"sim_step_ms": -1.0},
        {"sim_step_ms": math.inf},
        {"sim_prefill_tokens_per_s": 0.0},
        {"sim_prefill_tokens_per_s": math.nan},
        {"sim_prefill_attention_ns": math.nan},
        {"sim_decode_ms_per_row": -0.1},
        {"sim_decode_context_ns": -0.1},
        {"sim_speedup": 0.0},
        {"sim_speedup": math.nan},
        {"sim_vocab_size": 260},
        {"sim_eos_rate": 1.5},
        {"sim_eos_rate": -0.1},
    ],
)
def test_a_setting_out_of_range_is_refused_by_its_flag(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ConfigError, match="--" + name.replace("_", "-")):
        SimConfig(**wrong)
