"""From settings to step times: the profile named, and what flags change of it.

Owns the translation of flags to coefficients. Invariant: provenance says what was changed by hand.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from prefixlab.core.errors import ConfigError
from prefixlab.core.step_time.built_in import PROFILES
from prefixlab.core.step_time.model import LinearStepTime
from prefixlab.core.step_time.profile import Provenance, StepTimeProfile, read_profile
from prefixlab.simulator.config import SimConfig


def profile_of(config: SimConfig) -> StepTimeProfile:
    """The profile that `config` asks for.

    Raises:
        ConfigError: no profile of that name, or a file that cannot be used.
    """
    profile = PROFILES.get(config.sim_profile)
    if profile is None:
        path = Path(config.sim_profile)
        if not path.exists():
            raise ConfigError(
                f"--sim-profile {config.sim_profile}: no such file, nor one of {', '.join(PROFILES)}"
            )
        profile = read_profile(path)
    changes = _changes(config)
    if not changes:
        return profile
    return msgspec.structs.replace(
        profile,
        step_time=msgspec.structs.replace(profile.step_time, **changes),
        provenance=_changed_by_hand(profile.provenance, changes),
    )


def _changes(config: SimConfig) -> dict[str, float]:
    """Coefficients that flags set, in seconds."""
    per_s = config.sim_prefill_tokens_per_s
    given = {
        "fixed_s": _times(config.sim_step_ms, 1e-3),
        "prefill_token_s": None if per_s is None else 1 / per_s,
        "prefill_attention_s": _times(config.sim_prefill_attention_ns, 1e-9),
        "decode_row_s": _times(config.sim_decode_ms_per_row, 1e-3),
        "decode_context_s": _times(config.sim_decode_context_ns, 1e-9),
    }
    assert set(given) == set(LinearStepTime.__struct_fields__)
    return {name: value for name, value in given.items() if value is not None}


def _times(value: float | None, unit_s: float) -> float | None:
    return None if value is None else value * unit_s


def _changed_by_hand(provenance: Provenance, changes: dict[str, float]) -> Provenance:
    return msgspec.structs.replace(
        provenance, method=f"{provenance.method}; set by flags: {', '.join(changes)}", spread=None
    )
