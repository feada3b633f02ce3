"""The files in data/ were written by the clients themselves, cut to what is read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from prefixlab.bench.compare.comparison import compare
from prefixlab.bench.compare.figures import default_figures, parse_figures, sample_of
from prefixlab.bench.compare.report import verdict
from prefixlab.bench.compare.run import OURS, Run
from prefixlab.bench.compare.side import open_side, read_runs
from prefixlab.bench.metrics.point import evaluate
from prefixlab.bench.report.points.keys import result_keys
from prefixlab.core.errors import ConfigError
from tests.bench.compare.made import a_table, save
from tests.bench.points import a_point, settings_of

DATA = Path(__file__).parent / "data"


def the_run(path: Path) -> Run:
    (run,) = read_runs(str(path))
    return run


def figure(run: Run, word: str) -> float:
    (wanted,) = parse_figures(word)
    assert run.table is not None
    value = sample_of(wanted, [run.table], open_loop=run.open_loop).whole.value
    assert value is not None
    return value


def written(path: Path, data: Any) -> Path:
    path.write_text(json.dumps(data))
    return path


def sglang_line(*, details: bool = True, backend: str = "sglang") -> dict[str, Any]:
    """Keys and definitions of bench_serving 0.5.23."""
    line: dict[str, Any] = {
        "tag": None,
        "backend": backend,
        "dataset_name": "random",
        "request_rate": float("inf"),
        "max_concurrency": 8,
        "random_input_len": 64,
        "random_output_len": 3,
        "random_range_ratio": 1.0,
        "server_info": {"version": "0.5.9", "model_path": "some-model"},
        "duration": 2.0,
        "completed": 30,
        "total_output_tokens": 90,
        "total_output_tokens_retokenized": 90,
        "request_throughput": 15.0,
        "output_throughput": 45.0,
        "total_throughput": 1005.0,
        "mean_ttft_ms": 110.0,
        "mean_tpot_ms": 20.0,
        "mean_itl_ms": 20.0,
        "mean_e2e_latency_ms": 150.0,
    }
    if details:
        line |= {
            "input_lens": [64] * 30,
            "output_lens": [3] * 30,
            "ttfts": [0.1 + 0.02 * (number % 2) for number in range(30)],
            "itls": [[0.02, 0.02]] * 30,
            "errors": [""] * 30,
        }
    return line


def test_vllms_lists_give_vllms_figures() -> None:
    run = the_run(DATA / "vllm-detailed.json")
    assert run.client == "vllm bench serve" and (run.planned, run.failed) == (64, 0)
    for name in ("mean_ttft", "p99_ttft", "median_tpot", "p90_e2el", "mean_itl", "p99_itl"):
        assert figure(run, name) == pytest.approx(run.known[f"{name}_ms"]), name
    assert figure(run, "throughput") == pytest.approx(run.known["output_throughput"], rel=1e-3)
    assert run.definitions["itl"].text == OURS["itl"], "every event brought one token"


def test_of_vllm_without_lists_only_the_figures_are_known_and_its_itl_is_another() -> None:
    run = the_run(DATA / "vllm.json")
    assert run.table is None and run.known["mean_ttft_ms"] > 0
    assert run.definitions["ttft"].text == OURS["ttft"]
    assert run.definitions["itl"].text != OURS["itl"]


def test_events_of_several_tokens_make_vllms_itl_another_quantity(tmp_path: Path) -> None:
    data = json.loads((DATA / "vllm-detailed.json").read_text())
    data["itls"][0] = data["itls"][0][::2]
    run = the_run(written(tmp_path / "r.json", data))
    assert run.definitions["itl"].text != OURS["itl"] and not run.definitions["itl"].of_records


def test_on_chat_vllms_ttft_ends_with_an_event_that_may_hold_no_token(tmp_path: Path) -> None:
    data = json.loads((DATA / "vllm-detailed.json").read_text()) | {"endpoint_type": "openai-chat"}
    definitions = the_run(written(tmp_path / "r.json", data)).definitions
    assert definitions["ttft"].text != OURS["ttft"] and definitions["tpot"].text != OURS["tpot"]
    assert definitions["e2el"].text == OURS["e2el"]


def test_a_failed_request_of_vllms_is_none_that_is_timed(tmp_path: Path) -> None:
    data = json.loads((DATA / "vllm-detailed.json").read_text())
    data["errors"][5], data["failed"], data["completed"] = "HTTP 503", 1, 63
    run = the_run(written(tmp_path / "r.json", data))
    assert run.table is not None and run.table.ok.sum() == 63 and run.failed == 1


def test_guidellm_is_read_request_by_request() -> None:
    run = the_run(DATA / "guidellm.json")
    theirs = json.loads((DATA / "guidellm.json").read_text())["benchmarks"][0]["metrics"]
    assert run.client == "guidellm 0.8.1" and run.planned == 20 and not run.open_loop
    for name, word, scale in (
        ("time_to_first_token_ms", "mean_ttft", 1.0),
        ("inter_token_latency_ms", "mean_tpot", 1.0),
        ("request_latency", "mean_e2el", 1e3),
    ):
        assert figure(run, word) == pytest.approx(scale * theirs[name]["successful"]["mean"], rel=0.01), name
    tokens = theirs["output_tokens_per_second"]["successful"]["mean"]
    assert figure(run, "throughput") == pytest.approx(tokens, rel=0.01)
    assert "itl" not in run.definitions, "it keeps no gaps"


def test_guidellm_without_its_requests_still_has_figures(tmp_path: Path) -> None:
    data = json.loads((DATA / "guidellm.json").read_text())
    data["benchmarks"][0]["requests"] = {"successful": [], "errored": []}
    run = the_run(written(tmp_path / "benchmarks.json", data))
    assert run.table is None and run.known["mean_tpot_ms"] < run.known["mean_ttft_ms"]
    assert run.known["p99_e2el_ms"] > run.known["median_e2el_ms"] > 10


def test_a_part_of_guidellms_run_has_no_throughput_of_ours(tmp_path: Path) -> None:
    data = json.loads((DATA / "guidellm.json").read_text())
    data["benchmarks"][0]["warmup_duration"] = 1.0
    run = the_run(written(tmp_path / "benchmarks.json", data))
    assert "output_throughput" not in run.definitions and "warm-up" in run.notes[0]


def test_aiperf_is_read_with_the_records_beside_it() -> None:
    run = the_run(DATA / "profile_export_aiperf.json")
    assert run.client == "aiperf 0.13.0" and run.planned == 40
    for word in ("mean_ttft", "p99_ttft", "mean_tpot", "mean_e2el"):
        assert figure(run, word) == pytest.approx(run.known[f"{word}_ms"], rel=1e-3), word
    assert figure(run, "throughput") == pytest.approx(run.known["output_throughput"], rel=0.01)
    assert run.question["prompt-tokens"] == 64.0


def test_aiperf_alone_has_figures_and_counts_of_its_own_tokeniser_are_another_quantity(
    tmp_path: Path,
) -> None:
    data = json.loads((DATA / "profile_export_aiperf.json").read_text())
    data["input_config"]["endpoint"]["use_server_token_count"] = False
    run = the_run(written(tmp_path / "profile_export_aiperf.json", data))
    assert run.table is None and run.known["mean_tpot_ms"] > 0
    assert run.definitions["tpot"].text != OURS["tpot"] and run.definitions["ttft"].text == OURS["ttft"]


def test_a_torn_line_of_aiperfs_records_is_named(tmp_path: Path) -> None:
    for name in ("profile_export_aiperf.json", "profile_export.jsonl"):
        (tmp_path / name).write_bytes((DATA / name).read_bytes()[: None if "aiperf" in name else -40])
    with pytest.raises(ConfigError, match=r"profile_export.jsonl, line 40"):
        read_runs(str(tmp_path))


def test_sglang_counts_the_opening_of_connections_into_ttft_and_not_into_tpot(tmp_path: Path) -> None:
    path = tmp_path / "sglang.jsonl"
    path.write_text(json.dumps(sglang_line()) + "\n")
    run = the_run(path)
    assert figure(run, "mean_ttft") == pytest.approx(110.0) and figure(run, "mean_tpot") == pytest.approx(
        20.0
    )
    assert run.definitions["ttft"].text != OURS["ttft"] and run.definitions["tpot"].text == OURS["tpot"]
    assert run.definitions["itl"].text == OURS["itl"]
    assert run.definitions["output_throughput"].text != OURS["output_throughput"]
    assert run.question["request-rate"] == "inf" and run.circumstances["server"] == "0.5.9"


def test_of_sglang_without_details_only_the_figures_are_known(tmp_path: Path) -> None:
    path = tmp_path / "sglang.jsonl"
    path.write_text(json.dumps(sglang_line(details=False, backend="vllm")) + "\n")
    run = the_run(path)
    assert run.table is None and run.known["mean_e2el_ms"] == 150.0
    assert run.known["total_token_throughput"] == 1005.0
    assert run.definitions["itl"].text != OURS["itl"], "not /generate: a gap may have brought several tokens"


def test_our_own_result_file_is_read_as_vllms_with_our_definitions(tmp_path: Path) -> None:
    point = a_point()
    run = the_run(written(tmp_path / "ours.json", result_keys(point, detailed=True)))
    assert run.client.startswith("prefixlab ")
    assert figure(run, "mean_ttft") == pytest.approx(run.known["mean_ttft_ms"])
    assert run.definitions["ttft"].text == OURS["ttft"]


def test_a_run_directory_is_read_request_by_request(tmp_path: Path) -> None:
    run = the_run(save(tmp_path / "run", a_table(100)))
    told = result_keys(evaluate(settings_of(open_loop=True), [a_table(100)], a_point().health))
    for wanted in default_figures():
        assert figure(run, wanted.key) == pytest.approx(told[wanted.key]), wanted.key
    assert run.question["random-input-len"] == 64 and run.circumstances["server version"] == "1"


def test_repeats_in_a_run_directory_are_runs_of_their_own(tmp_path: Path) -> None:
    from prefixlab.bench.records.table import RecordTable

    tables = [a_table(30, seed=seed, prefix=f"repeat{seed}-") for seed in range(3)]
    save(tmp_path / "run", RecordTable.pool(tables), repeats=3)
    (point,) = open_side(str(tmp_path / "run")).points
    assert len(point.runs) == 3
    names = [run.table.request_id for run in point.runs if run.table is not None]
    assert all(list(ids) == [str(number) for number in range(30)] for ids in names)


@pytest.fixture
def two_folders(tmp_path: Path) -> Iterator[Path]:
    for name in ("one", "two"):
        save(tmp_path / "runs" / name, a_table(30))
    yield tmp_path / "runs"


def test_a_folder_of_runs_of_one_setting_holds_repeats(two_folders: Path) -> None:
    (point,) = open_side(str(two_folders)).points
    assert len(point.runs) == 2


def test_paths_with_commas_between_are_repeats(two_folders: Path) -> None:
    (point,) = open_side(f"{two_folders / 'one'},{two_folders / 'two'}").points
    assert len(point.runs) == 2


def test_runs_that_asked_different_things_are_no_repeats(two_folders: Path) -> None:
    save(two_folders / "three", a_table(30), config={"dataset": {"random_input_len": 65}})
    with pytest.raises(ConfigError, match=r"no repeats of each other.*random-input-len"):
        open_side(str(two_folders))


def test_a_sweep_has_its_points(tmp_path: Path) -> None:
    for rate in (10, 20):
        save(tmp_path / "sweep" / str(rate), a_table(30), swept={"request-rate": rate})
    assert [point.name for point in open_side(str(tmp_path / "sweep")).points] == [
        "request-rate=10",
        "request-rate=20",
    ]


def test_lines_of_results_are_points_by_their_load(tmp_path: Path) -> None:
    lines = [sglang_line() | {"max_concurrency": load} for load in (1, 8)]
    path = tmp_path / "sglang.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    assert len(open_side(str(path)).points) == 2


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("", "is empty"),
        ("{}", "no result that is known"),
        ("[1, 2]", "line 1: no JSON object"),
        ('{"endpoint_type": "vllm", "completed": "many", "output_throughput": 1}', "cannot be read as one"),
    ],
)
def test_what_is_no_result_is_refused_with_what_is(tmp_path: Path, content: str, word: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=word):
        open_side(str(path))


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere cannot be read: No such file"):
        open_side(str(tmp_path / "nowhere"))


def warm_cache_lines(path: Path, ttft_ms: Sequence[float], **more: Any) -> Path:
    about = {"prefixlab_version": "1", "model": "m", "total_tokens": 512, "completed": 20, "failed": 0} | more
    lines = [
        about
        | {"shared_prefix_pct": pct, "repeat": number, "mean_ttft_ms": ms, "output_throughput": 1e3 / ms}
        for pct in (0, 50)
        for number, ms in enumerate(ttft_ms)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_lines_of_warm_cache_are_points_by_their_shared_percent_with_repeats(tmp_path: Path) -> None:
    a = open_side(str(warm_cache_lines(tmp_path / "a.jsonl", (100.0, 101.0, 99.0))))
    b = open_side(str(warm_cache_lines(tmp_path / "b.jsonl", (150.0, 151.0, 149.0))))
    assert [(point.name, len(point.runs)) for point in a.points] == [
        ("shared-prefix-pct=0", 3),
        ("shared-prefix-pct=50", 3),
    ]
    found = compare(a, b, figures=parse_figures("mean_ttft"), margin=0.02, confidence=0.95, seed=0)
    assert found.finding == "worse" and found.same_question
    assert {of.method for point in found.points for of in point.differences} == {"3 and 3 repeats"}


def test_one_line_of_each_point_takes_repeats_to_tell(tmp_path: Path) -> None:
    side = open_side(str(warm_cache_lines(tmp_path / "a.jsonl", (100.0,))))
    found = compare(side, side, margin=0.02, confidence=0.95, seed=0)
    assert found.finding == "undecided" and "three runs of each or more would tell" in verdict(found)


def test_lines_of_warm_cache_of_another_size_are_no_repeats(tmp_path: Path) -> None:
    path = warm_cache_lines(tmp_path / "a.jsonl", (100.0,))
    other = warm_cache_lines(tmp_path / "b.jsonl", (100.0,), total_tokens=1024)
    with pytest.raises(ConfigError, match="total-tokens"):
        open_side(f"{path},{other}")
