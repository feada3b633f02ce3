from __future__ import annotations

from typing import Any

import pytest

from prefixlab.bench.config.dataset import TRACE_DATASETS, DatasetConfig
from prefixlab.bench.config.load import LoadConfig
from prefixlab.bench.config.serve import ServeConfig
from prefixlab.bench.config.trace import FORMATS, PRESETS, TraceConfig
from prefixlab.bench.traces.reading import FORMATS as READERS
from prefixlab.core.errors import ConfigError


def serve(name: str = "trace", load: LoadConfig | None = None, **options: Any) -> ServeConfig:
    path = "t.jsonl" if name in TRACE_DATASETS else None
    dataset = DatasetConfig(dataset_name=name, dataset_path=path)
    return ServeConfig(dataset=dataset, load=load or LoadConfig(), trace=TraceConfig(**options))


def test_every_format_that_is_read_can_be_asked_for() -> None:
    assert set(FORMATS) == set(READERS)


def test_two_is_faster_as_a_speedup_and_slower_as_a_time_scale() -> None:
    assert TraceConfig(speedup=2.0).factor == 2
    assert TraceConfig(time_scale=2.0).factor == 0.5
    assert PRESETS["qwen"]["time_scale"] == (0.4, 0.5, 0.6, 0.7, 0.8, 1.6)


@pytest.mark.parametrize("name", TRACE_DATASETS)
def test_a_trace_goes_at_its_own_times_unless_something_else_says_when(name: str) -> None:
    assert serve(name).load.fixed_schedule is True
    assert serve(name, LoadConfig(max_concurrency=4)).load.open_loop
    assert serve(name, LoadConfig(request_rate=5.0)).load.fixed_schedule is False
    in_order = serve(name, LoadConfig(fixed_schedule=False, max_concurrency=4)).load
    assert not in_order.open_loop


def test_other_prompts_have_no_times_to_go_at() -> None:
    assert serve("random").load.fixed_schedule is None
    for fixed, flag in ((True, "--fixed-schedule"), (False, "--no-fixed-schedule")):
        with pytest.raises(ConfigError, match=f"^{flag} is for traces, not random"):
            serve("random", LoadConfig(fixed_schedule=fixed))
    with pytest.raises(ConfigError, match=r"^--time-scale is for --dataset-name trace or mooncake"):
        serve("random", time_scale=2.0)


def test_arrivals_are_told_with_the_speed_in_the_words_it_was_given_in() -> None:
    assert serve().arrivals() == "times of the trace"
    assert serve(speedup=2.0).arrivals() == "times of the trace, speedup 2"
    assert serve(time_scale=0.4).arrivals() == "times of the trace, time scale 0.4"
    assert serve(load=LoadConfig(request_rate=5.0)).arrivals() == "Poisson, 5 req/s"


@pytest.mark.parametrize(
    ("load", "pace"),
    [
        (LoadConfig(request_rate=5.0), "open loop, Poisson, 5 req/s"),
        (LoadConfig(fixed_schedule=False, max_concurrency=1), "closed loop, 1 in flight"),
    ],
)
def test_a_speed_is_refused_where_the_times_of_the_trace_are_not_used(load: LoadConfig, pace: str) -> None:
    told = f"changes the times of the trace, which are not used: {pace}"
    with pytest.raises(ConfigError, match=f"^--speedup {told}"):
        serve(load=load, speedup=2.0)
    with pytest.raises(ConfigError, match=f"^--time-scale {told}"):
        serve(load=load, time_scale=2.0)
    assert serve(load=load, time_scale=1.0).trace.factor == 1


def test_settings_of_a_replay_are_restored_as_they_were() -> None:
    config = serve(load=LoadConfig(max_concurrency=3), time_scale=0.4, slice_start=3.0, max_osl=9)
    assert ServeConfig.restore(config.stored(), {}, {}) == config
    assert ServeConfig.restore(config.stored(), {}, {}).key() == config.key()
