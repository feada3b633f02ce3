"""What the options of a point mean: load, prompts, results, and how they are written down."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prefixlab.bench.config.dataset import DatasetConfig, LengthRange, SamplingConfig
from prefixlab.bench.config.load import LoadConfig
from prefixlab.bench.config.report import ReportConfig
from prefixlab.bench.config.serve import SWEEPABLE, WORKLOADS, RequestConfig, ServeConfig
from prefixlab.bench.config.target import TargetConfig
from prefixlab.core.errors import ConfigError


@pytest.mark.parametrize(
    ("options", "open_loop", "words"),
    [
        ({}, True, "open loop, all at once"),
        ({"max_concurrency": 5}, False, "closed loop, 5 in flight"),
        ({"request_rate": 2.5}, True, "open loop, Poisson, 2.5 req/s"),
        (
            {"request_rate": 2.0, "max_concurrency": 5},
            True,
            "open loop, Poisson, 2 req/s, at most 5 in flight",
        ),
        ({"request_rate": 2.0, "burstiness": math.inf}, True, "open loop, constant, 2 req/s"),
        ({"request_rate": 2.0, "burstiness": 0.5}, True, "open loop, gamma 0.5, 2 req/s"),
        ({"stage": ("5:60", "9:1")}, True, "open loop, Poisson, stages 5:60 9:1"),
        (
            {"ramp_up_strategy": "linear", "ramp_up_start_rps": 1.0, "ramp_up_end_rps": 9.0},
            True,
            "open loop, Poisson, linear ramp 1 to 9 req/s",
        ),
        ({"schedule": "times.txt", "max_concurrency": 3}, True, "open loop, times from times.txt, at most 3"),
    ],
)
def test_a_rate_makes_an_open_loop_and_concurrency_alone_a_closed_one(
    options: dict[str, Any], open_loop: bool, words: str
) -> None:
    load = LoadConfig(**options)
    assert load.open_loop is open_loop
    assert load.describe().startswith(words)


@pytest.mark.parametrize(
    ("options", "num_prompts", "count", "last_s"),
    [
        ({"request_rate": 4.0, "burstiness": math.inf}, None, 100, 24.75),
        ({"request_rate": 4.0, "burstiness": math.inf}, 9, 9, 2.0),
        ({"request_rate": 4.0, "burstiness": math.inf, "duration": 5.0}, None, 20, 4.75),
        ({"request_rate": 4.0, "burstiness": math.inf, "duration": 5.0}, 8, 8, 1.75),
        ({"stage": ("1:4", "2:2"), "burstiness": math.inf}, None, 8, 5.5),
        ({"stage": ("1:4", "2:2"), "burstiness": math.inf}, 5, 5, 4.0),
    ],
)
def test_arrivals_say_how_many_requests_there_are_unless_the_user_does(
    options: dict[str, Any], num_prompts: int | None, count: int, last_s: float
) -> None:
    offsets = LoadConfig(**options).offsets(num_prompts, 100, seed=1)
    assert offsets is not None
    assert (len(offsets), float(offsets[-1])) == (count, pytest.approx(last_s))


def test_a_ramp_takes_as_long_as_its_requests_or_as_the_duration_says() -> None:
    ramp = LoadConfig(
        ramp_up_strategy="linear", ramp_up_start_rps=1.0, ramp_up_end_rps=3.0, burstiness=math.inf
    )
    offsets = ramp.offsets(200, 1000, seed=1)
    assert offsets is not None and len(offsets) == 200 and 99 < offsets[-1] < 100
    over_a_minute = replace(ramp, duration=60.0).offsets(None, 1000, seed=1)
    assert over_a_minute is not None and len(over_a_minute) == 120


def test_without_a_rate_nothing_says_when() -> None:
    assert LoadConfig().offsets(5, 1000, seed=1) is None
    assert LoadConfig(max_concurrency=2, duration=5.0).offsets(5, 1000, seed=1) is None


def test_a_schedule_is_cut_to_the_requests_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "times"
    path.write_text("0\n1\n2\n3\n")
    load = LoadConfig(schedule=str(path))
    offsets = load.offsets(3, 1000, seed=1)
    assert offsets is not None and offsets.tolist() == [0, 1, 2]
    with pytest.raises(ConfigError, match="no request arrives"):
        LoadConfig(stage=("0.001:1",)).offsets(None, 1000, seed=1)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"request_rate": 0.0}, "--request-rate must be above 0"),
        ({"request_rate": math.nan}, "--request-rate must be above 0"),
        ({"request_rate": 2.0, "stage": ("1:1",)}, "--request-rate and --stage both say"),
        ({"burstiness": 0.0, "request_rate": 2.0}, "--burstiness must be above 0"),
        ({"burstiness": 0.5}, "--burstiness shapes arrivals"),
        ({"max_concurrency": 0}, "--max-concurrency must be at least 1"),
        ({"duration": 0.0}, "--duration must be"),
        ({"retries": -1}, "--retries must be"),
        ({"repeats": 0}, "--repeats must be"),
        ({"num_warmups": -1}, "--num-warmups must be"),
        ({"ramp_up_start_rps": 1.0}, "--ramp-up-start-rps: give --ramp-up-strategy"),
        ({"ramp_up_strategy": "linear", "ramp_up_start_rps": 1.0}, "needs --ramp-up-end-rps"),
        ({"ramp_up_strategy": "linear"}, "needs --ramp-up-start-rps and --ramp-up-end-rps"),
        (
            {"ramp_up_strategy": "exponential", "ramp_up_start_rps": 0.0, "ramp_up_end_rps": 2.0},
            "needs a --ramp-up-start-rps of more than 0",
        ),
        (
            {"ramp_up_strategy": "linear", "ramp_up_start_rps": 0.0, "ramp_up_end_rps": 0.0},
            "both 0",
        ),
    ],
)
def test_a_load_that_cannot_be_is_refused_by_its_flag(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        LoadConfig(**options)


@pytest.mark.parametrize(
    ("ratio", "as_sglang", "inputs", "outputs"),
    [
        (None, False, (100, 100), (11, 11)),
        (None, True, (100, 100), (11, 11)),
        ("0.25", False, (75, 125), (8, 14)),
        ("0.25", True, (25, 100), (2, 11)),
        ("0", True, (1, 100), (1, 11)),
        ("1", False, (1, 200), (1, 22)),
        ('{"input": 0.5, "output": 0}', False, (50, 150), (11, 11)),
    ],
)
def test_a_range_ratio_means_what_it_means_to_the_users_of_each_client(
    ratio: str | None, as_sglang: bool, inputs: tuple[int, int], outputs: tuple[int, int]
) -> None:
    dataset = DatasetConfig(random_input_len=100, random_output_len=11, random_range_ratio=ratio)
    assert dataset.lengths(as_sglang=as_sglang) == (LengthRange(*inputs), LengthRange(*outputs))


def test_sglangs_meaning_comes_with_its_backend_unless_said_otherwise() -> None:
    sglang = TargetConfig(backend="sglang", port=1)
    assert ServeConfig(target=sglang).as_sglang
    assert not ServeConfig(target=sglang, dataset=DatasetConfig(range_ratio_of="vllm")).as_sglang
    assert ServeConfig(dataset=DatasetConfig(range_ratio_of="sglang")).as_sglang
    assert not ServeConfig().as_sglang


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"dataset_name": "spec_bench"}, "spec_bench comes in a later version"),
        ({"dataset_name": "custom"}, "give --dataset-path"),
        ({"dataset_path": "x"}, "--dataset-path is for --dataset-name custom"),
        ({"num_prompts": 0}, "--num-prompts must be at least 1"),
        ({"seed": -1}, "--seed must be at least 0"),
        ({"random_input_len": 0}, "--random-input-len must be at least 1"),
        ({"random_range_ratio": "wide"}, "--random-range-ratio takes"),
        ({"random_range_ratio": "1.5"}, "must lie in"),
        ({"random_range_ratio": '{"input": 0.5}'}, "--random-range-ratio takes"),
        ({"random_range_ratio": '{"input": 0.5, "output": 0, "x": 1}'}, "--random-range-ratio takes"),
        ({"custom_output_len": 0}, "--custom-output-len"),
    ],
)
def test_prompts_that_cannot_be_are_refused_by_their_flag(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        DatasetConfig(**options)


def test_sglangs_random_ids_are_what_random_is_here() -> None:
    assert DatasetConfig(dataset_name="random-ids").dataset_name == "random"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"percentile_metrics": "ttft,speed"}, "--percentile-metrics takes"),
        ({"metric_percentiles": "50,x"}, "--metric-percentiles takes"),
        ({"metric_percentiles": "0"}, "--metric-percentiles takes"),
        ({"goodput": ("speed:5",)}, "--goodput speed:5"),
        ({"metadata": ("x",)}, "--metadata takes K=V"),
        ({"save_detailed": True}, "give that"),
        ({"output_file": "/nowhere/at/all"}, "--output-file"),
    ],
)
def test_results_that_cannot_be_told_are_refused_by_their_flag(
    options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        ReportConfig(**options)


def test_metrics_and_percentiles_are_as_named_and_vllms_queue_metrics_are_always_told() -> None:
    report = ReportConfig(
        percentile_metrics="ttft, client_queue_time,e2el_including_client_queue",
        metric_percentiles="25,99.9",
        metadata=("tp=2", "note=a=b"),
    )
    assert report.metrics() == ("ttft",)
    assert report.percentiles() == (25.0, 99.9)
    assert report.metadata_pairs() == {"tp": "2", "note": "a=b"}


def settings() -> ServeConfig:
    return ServeConfig(
        target=TargetConfig(base_url="http://x", header=("A=b",), api_key="secret"),
        request=RequestConfig(request_id_prefix="p-"),
        dataset=DatasetConfig(random_range_ratio='{"input": 0.5, "output": 0}', num_prompts=7),
        sampling=SamplingConfig(top_p=0.5),
        load=LoadConfig(stage=("5:60", "1:1"), burstiness=math.inf),
        report=ReportConfig(goodput=("ttft:5",), label="a"),
        engine={"num_pages": 5},
    )


def test_settings_are_written_down_without_secrets_and_read_back_the_same() -> None:
    text = json.dumps(settings().stored(), allow_nan=False)
    assert "secret" not in text.replace('"secret"', "") and "A=b" not in text
    given = {"header": ["A=b"], "api_key": "secret"}
    assert ServeConfig.restore(json.loads(text), given, {}) == settings()
    assert ServeConfig.restore(json.loads(text), {"header": ["A=b"]}, {"PREFIXLAB_API_KEY": "secret"}) == (
        settings()
    )
    plain = ServeConfig()
    assert ServeConfig.restore(json.loads(json.dumps(plain.stored())), {}, {}) == plain


def test_a_secret_the_run_had_must_be_given_again() -> None:
    with pytest.raises(ConfigError, match="the run had a --header"):
        ServeConfig.restore(settings().stored(), {"api_key": "secret"}, {})
    with pytest.raises(ConfigError, match="not one of this version"):
        ServeConfig.restore({"target": {}}, {}, {})


def test_prompts_depend_on_what_is_asked_and_not_on_how_it_is_measured() -> None:
    key = settings().key()
    assert key == settings().key()
    same = [
        {"target": TargetConfig(base_url="http://y", num_workers=3)},
        {"report": ReportConfig(label="b")},
        {"load": replace(settings().load, retries=3, repeats=5, num_warmups=2, duration=5.0)},
        {"dataset": replace(settings().dataset, num_prompts=900)},
    ]
    assert {replace(settings(), **change).key() for change in same} == {key}
    other = [
        {"load": replace(settings().load, max_concurrency=5)},
        {"dataset": replace(settings().dataset, random_input_len=5)},
        {"dataset": replace(settings().dataset, seed=5)},
    ]
    assert key not in {replace(settings(), **change).key() for change in other}


def test_a_sweep_may_vary_numbers_names_and_files_of_load_prompts_and_sampling() -> None:
    assert {"max_concurrency", "request_rate", "random_input_len", "random_range_ratio"} <= SWEEPABLE
    assert {"temperature", "dataset_path", "ramp_up_strategy", "seed"} <= SWEEPABLE
    assert not {"stage", "oversample", "shuffle", "repeats", "label", "base_url"} & SWEEPABLE


@pytest.mark.parametrize(
    ("backend", "asked", "ignores"),
    [
        ("vllm", None, False),
        ("openai-chat", None, False),
        ("sglang", None, True),
        ("prefixlab", None, True),
        ("vllm", True, True),
        ("sglang", False, False),
    ],
)
def test_outputs_go_to_their_length_as_each_client_has_it(
    backend: str, asked: bool | None, ignores: bool
) -> None:
    config = ServeConfig(request=RequestConfig(ignore_eos=asked))
    assert config.ignores_eos(backend) is ignores


@pytest.mark.parametrize("rate", [1e-9, 1e-12, 5e-324])
def test_a_rate_at_which_no_run_ever_ends_is_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match=r"would be sent after .* days|no request arrives"):
        LoadConfig(request_rate=rate).offsets(10, 10, seed=0)


def test_in_process_there_is_no_server_to_wait_for() -> None:
    asked = RequestConfig(ready_check_timeout_sec=5.0)
    with pytest.raises(ConfigError, match="--ready-check-timeout-sec is for a server behind HTTP"):
        ServeConfig(target=TargetConfig(backend="in-process"), request=asked)
    assert ServeConfig(target=TargetConfig(base_url="http://h"), request=asked).request == asked


@pytest.mark.parametrize(
    ("option", "flag"),
    [
        ({"custom_output_len": 7}, "--custom-output-len"),
        ({"oversample": False}, "--no-oversample"),
        ({"shuffle": False}, "--no-shuffle"),
        ({"chat_template": True}, "--chat-template"),
    ],
)
def test_what_only_prompts_of_a_file_take_is_refused_with_random_ones(
    option: dict[str, Any], flag: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{flag} is for --dataset-name custom.*, not random"):
        DatasetConfig(**option)


@pytest.mark.parametrize(
    ("option", "flag"),
    [
        ({"random_prefix_len": 3}, "--random-prefix-len"),
        ({"random_range_ratio": "0.5"}, "--random-range-ratio"),
        ({"range_ratio_of": "vllm"}, "--range-ratio-of"),
    ],
)
def test_what_only_random_prompts_take_is_refused_with_a_file(option: dict[str, Any], flag: str) -> None:
    with pytest.raises(ConfigError, match=f"^{flag} is for --dataset-name random, not custom"):
        DatasetConfig(dataset_name="custom", dataset_path="x", **option)


@pytest.mark.parametrize("name", ["hit-rate", "generated-shared-prefix", "shared-prefix"])
@pytest.mark.parametrize("option", ["random_input_len", "random_output_len"])
def test_lengths_of_random_prompts_are_refused_where_only_warm_ups_would_have_them_and_there_are_none(
    name: str, option: str
) -> None:
    flag = f"--{option.replace('_', '-')}"
    dataset = DatasetConfig(dataset_name=name, **{option: 64})  # type: ignore[arg-type]
    with pytest.raises(
        ConfigError, match=f"^{flag} is for --dataset-name random or prefix-ratio, not {name}"
    ):
        ServeConfig(dataset=dataset)
    assert ServeConfig(dataset=dataset, load=LoadConfig(num_warmups=1)).dataset == dataset


def test_what_only_made_up_prompts_take_is_refused_with_a_file() -> None:
    with pytest.raises(ConfigError, match=r"^--prompt-form is for made-up prompts, not custom"):
        DatasetConfig(dataset_name="custom", dataset_path="x", prompt_form="text")
    assert DatasetConfig(dataset_name="shared-prefix", prompt_form="text").prompt_form == "text"


@pytest.mark.parametrize(
    ("part", "option", "complaint"),
    [
        ("gsp", {"gsp_num_groups": 3}, "--gsp-num-groups is for --dataset-name generated-shared-prefix"),
        ("shared_prefix", {"shared_pct": 10}, "--shared-pct is for --dataset-name shared-prefix"),
        ("hit_rate", {"hit_rate": 0.1}, "--hit-rate is for --dataset-name hit-rate"),
        (
            "prefix_repetition",
            {"prefix_repetition_num_prefixes": 3},
            "--prefix-repetition-num-prefixes is for --dataset-name prefix_repetition",
        ),
    ],
)
def test_options_of_a_data_set_are_refused_with_another_and_may_be_swept(
    part: str, option: dict[str, Any], complaint: str
) -> None:
    config_class = WORKLOADS[part]
    with pytest.raises(ConfigError, match=f"^{complaint}, not random"):
        ServeConfig(**{part: config_class(**option)})
    (name,) = config_class.DATASETS
    config = ServeConfig(dataset=DatasetConfig(dataset_name=name), **{part: config_class(**option)})
    assert config.key() != ServeConfig(dataset=DatasetConfig(dataset_name=name)).key()
    assert set(option) <= SWEEPABLE
    assert ServeConfig.restore(json.loads(json.dumps(config.stored())), {}, {}) == config


def test_a_hit_rate_in_percent_is_understood_and_refused() -> None:
    with pytest.raises(ConfigError, match=r"^--hit-rate must lie in \[0, 1\), not 70; did you mean 0\.7\?$"):
        WORKLOADS["hit_rate"](hit_rate=70.0)


@pytest.mark.parametrize("option", [{"result_dir": "d"}, {"result_filename": "x"}])
def test_a_place_for_a_file_that_is_not_asked_for_is_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="nothing is written there without --save-result"):
        ReportConfig(**option)
    assert ReportConfig(**option, save_result=True).writes_file


@pytest.mark.parametrize("flag", ["output_file", "save_workload", "result_filename"])
def test_a_folder_is_no_file_to_write_and_that_is_said_before_anything_is_sent(
    flag: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"--{flag.replace('_', '-')} .*: that is a folder, not a file"):
        ReportConfig(**{flag: str(tmp_path), "save_result": flag == "result_filename"})
