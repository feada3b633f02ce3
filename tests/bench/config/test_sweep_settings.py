from __future__ import annotations

import argparse
from typing import Any

import pytest

from prefixlab.bench.config.load import LoadConfig
from prefixlab.bench.config.serve import SWEEPABLE
from prefixlab.bench.config.sweep import SweepConfig, point_name, settings_of, shown
from prefixlab.core.config import Values, add_flags
from prefixlab.core.errors import ConfigError


def test_lists_are_taken_in_every_combination_the_last_one_fastest() -> None:
    given = {"request_rate": Values((1.0, 2.0)), "seed": Values((7,)), "random_input_len": Values((8, 16))}
    assert SweepConfig().points(given) == [
        {"request_rate": 1.0, "random_input_len": 8},
        {"request_rate": 1.0, "random_input_len": 16},
        {"request_rate": 2.0, "random_input_len": 8},
        {"request_rate": 2.0, "random_input_len": 16},
    ]


def test_or_side_by_side() -> None:
    given = {"max_concurrency": Values((1, 2)), "random_input_len": Values((8, 16))}
    points = SweepConfig(zip=True).points(given)
    assert points == [
        {"max_concurrency": 1, "random_input_len": 8},
        {"max_concurrency": 2, "random_input_len": 16},
    ]
    with pytest.raises(ConfigError, match="--max-concurrency 2, --random-input-len 3"):
        SweepConfig(zip=True).points({**given, "random_input_len": Values((8, 16, 32))})


def test_without_a_load_the_concurrencies_are_the_usual_ones() -> None:
    concurrencies = [point["max_concurrency"] for point in SweepConfig().points({})]
    assert concurrencies == [1, 2, 5, 10, 50, 100, 250]
    assert len(SweepConfig().points({"random_input_len": Values((8, 16))})) == 14
    assert SweepConfig().points({"max_concurrency": Values((4,))}) == [{}]
    assert SweepConfig().points({"stage": ["5:60"]}) == [{}]


def test_a_value_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="--max-concurrency holds a value twice: 1, 1"):
        SweepConfig().points({"max_concurrency": Values((1, 1))})


@pytest.mark.parametrize(
    ("given", "num_prompts"),
    [
        ({"max_concurrency": Values((2,))}, 10),
        ({"max_concurrency": Values((50,))}, 150),
        ({"max_concurrency": Values((50,)), "num_prompts": Values((7,))}, 7),
        ({"max_concurrency": Values((50,)), "duration": 5.0}, None),
        ({"request_rate": Values((5.0,))}, None),
        ({"max_concurrency": Values((50,)), "dataset_path": Values(("x",))}, None),
    ],
)
def test_a_point_has_three_requests_a_slot_and_at_least_ten(
    given: dict[str, Any], num_prompts: int | None
) -> None:
    assert settings_of(given, {}).get("num_prompts") == num_prompts


def test_a_points_own_values_win_and_its_name_says_them() -> None:
    point = {"max_concurrency": 5, "random_range_ratio": '{"input": 0.5}'}
    assert settings_of({"max_concurrency": Values((1, 5)), "label": "x"}, point)["max_concurrency"] == 5
    assert point_name(3, "east", point) == "003-east-max-concurrency=5-random-range-ratio=_input_0.5_"
    assert point_name(0, None, {}) == "000"
    assert shown("east", {"max_concurrency": 5}) == {"target": "east", "max-concurrency": 5}


def test_servers_are_named() -> None:
    config = SweepConfig(target=("a-1=http://x:1", " B =HTTPS://y/v1"))
    assert config.targets() == {"a-1": "http://x:1", "B": "HTTPS://y/v1"}


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("http://x",), "NAME=URL"),
        (("=http://x",), "NAME=URL"),
        (("a b=http://x",), "NAME=URL"),
        (("Plots=http://x",), "--target Plots: that name is taken"),
        (("a=x:80",), "does not start with http"),
        (("a=http://x", "a=http://y"), "names a twice"),
    ],
)
def test_a_name_or_address_that_cannot_be_one_is_refused(words: tuple[str, ...], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        SweepConfig(target=words).targets()


def test_flags_of_a_sweep_take_lists_and_a_json_object_is_one_value() -> None:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_flags(parser, LoadConfig, listed=SWEEPABLE)
    parsed = vars(parser.parse_args(["--max-concurrency", "1, 2,5", "--request-rate", "inf"]))
    assert parsed == {"max_concurrency": (1, 2, 5), "request_rate": (float("inf"),)}
    assert isinstance(parsed["max_concurrency"], Values)
    for words in (["--max-concurrency", "1,x"], ["--ramp-up-strategy", "linear,round"]):
        with pytest.raises(argparse.ArgumentError):
            parser.parse_args(words)
    from prefixlab.bench.config.dataset import DatasetConfig

    parser = argparse.ArgumentParser()
    add_flags(parser, DatasetConfig, listed=SWEEPABLE)
    ratio = '{"input": 0.5, "output": 0}'
    assert vars(parser.parse_args(["--random-range-ratio", ratio])) == {"random_range_ratio": (ratio,)}


def test_prompts_that_share_are_as_many_as_they_say_not_as_concurrency_does() -> None:
    assert settings_of({"dataset_name": "random"}, {"max_concurrency": 8})["num_prompts"] == 24
    for name in ("generated-shared-prefix", "prefix_repetition", "shared-prefix", "hit-rate", "sessions"):
        assert "num_prompts" not in settings_of({"dataset_name": name}, {"max_concurrency": 8})
    given = {"dataset_name": "hit-rate", "num_prompts": 7}
    assert settings_of(given, {"max_concurrency": 8})["num_prompts"] == 7
