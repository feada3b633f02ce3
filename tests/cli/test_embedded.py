from __future__ import annotations

import argparse
import dataclasses

import httpx
import pytest

from prefixlab.bench.config.target import TargetConfig
from prefixlab.bench.config.warm_cache import WarmCacheConfig
from prefixlab.cli import embedded
from prefixlab.cli.embedded import add_engine_flags, embedded_server, engine_configs, engine_words
from prefixlab.cli.main import main
from prefixlab.core.config import add_flags
from prefixlab.core.errors import ConfigError


def parser_of(*configs: type) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    for config in configs:
        add_flags(parser, config)
    add_engine_flags(parser, *configs)
    return parser


def test_every_setting_of_the_engine_can_be_given_exactly_once() -> None:
    options = set(parser_of(TargetConfig, WarmCacheConfig)._option_string_actions)
    for engine_config in engine_configs():
        for field in dataclasses.fields(engine_config):
            assert "--" + field.name.replace("_", "-") in options


def test_settings_given_are_passed_on_as_flags_and_others_are_not() -> None:
    given = parser_of(TargetConfig, WarmCacheConfig).parse_args(
        ["--dtype", "float32", "--force-miss", "--no-deterministic", "--num-pages", "9", "--seed", "7"]
    )
    words = engine_words(vars(given), TargetConfig, WarmCacheConfig)
    assert words == ["--dtype", "float32", "--no-deterministic", "--num-pages", "9", "--force-miss"]


def test_an_engine_that_refuses_its_settings_says_so_in_its_own_words() -> None:
    refused = pytest.raises(ConfigError, match=r"refused its settings:\n.*--page-size must be at least 1")
    with refused, embedded_server(["--page-size", "0"]):
        pytest.fail("it must not come up")


def without_torch(name: str) -> None:
    assert name == "torch"


def test_without_torch_the_embedded_engine_is_refused_with_the_ways_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(embedded, "find_spec", without_torch)
    refused = pytest.raises(ConfigError, match=r"prefixlab\[engine\].* --base-url, .* --model sim")
    with refused, embedded_server(["--model", "tiny"]):
        pytest.fail("it must not come up")


@pytest.mark.service
@pytest.mark.parametrize("named_by", ["flag", "environment"])
def test_without_torch_a_simulated_one_comes_up(monkeypatch: pytest.MonkeyPatch, named_by: str) -> None:
    monkeypatch.setattr(embedded, "find_spec", without_torch)
    words = ["--model", "sim"] if named_by == "flag" else []
    if not words:
        monkeypatch.setenv("PREFIXLAB_MODEL", "sim")
    with embedded_server(words) as url:
        assert httpx.get(f"{url}/server_info").json()["model"] == "sim"


def test_a_verb_hands_that_on_as_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "warm-cache", "--max-running-requests", "0"]) == 2
    captured = capsys.readouterr()
    assert "--max-running-requests must be at least 1" in captured.err
    assert captured.out == ""
