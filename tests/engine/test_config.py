"""Engine settings: flags from fields, and nothing accepted that is not honoured."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from typing import Any

import pytest

from prefixlab.core.config import add_flags, resolve
from prefixlab.core.errors import ConfigError
from prefixlab.engine.config import EngineConfig


def test_flags_environment_and_defaults_make_a_config() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser, EngineConfig)
    given = vars(parser.parse_args(["--model-path", "m", "--deterministic", "--max-model-len", "99"]))
    config = resolve(EngineConfig, given, {"PREFIXLAB_DTYPE": "bfloat16", "PREFIXLAB_MODEL": "other"})
    assert config == EngineConfig(model="m", deterministic=True, max_model_len=99, dtype="bfloat16")
    assert EngineConfig().model == "tiny"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"dtype": "float16"}, "--dtype"),
        ({"load_format": "pt"}, "--load-format"),
        ({"device": "cuda"}, "--device cuda"),
        ({"model": ""}, "--model"),
        ({"max_model_len": 1}, "--max-model-len"),
        ({"kv_memory_bytes": 0}, "--kv-memory-bytes"),
        ({"seed": 2**63}, "--seed"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        EngineConfig(**fields)


def test_settings_and_shapes_need_no_torch() -> None:
    code = "import prefixlab.engine.config, prefixlab.engine.shapes, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_openmp_threads_sleep_at_barriers_unless_told_otherwise() -> None:
    code = "import prefixlab.engine, os; print(os.environ['OMP_WAIT_POLICY'])"

    def policy(**variables: str) -> str:
        environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"} | variables
        run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
        return run.stdout.decode().strip()

    assert policy() == "PASSIVE"
    assert policy(OMP_WAIT_POLICY="ACTIVE") == "ACTIVE"
