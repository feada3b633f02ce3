from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from prefixlab.bench.compare.difference import differ
from prefixlab.bench.compare.figures import (
    Figure,
    default_figures,
    of_throughput,
    parse_figures,
    same_requests,
    sample_of,
    samples_of_pairs,
)
from prefixlab.bench.metrics.summary import as_result_keys, summarise
from prefixlab.bench.records.table import RecordTable
from prefixlab.core.errors import ConfigError
from tests.bench.compare.made import a_table
from tests.bench.points import a_run


def keys(words: str) -> list[str]:
    return [figure.key for figure in parse_figures(words)]


@pytest.mark.parametrize("open_loop", [False, True])
def test_every_figure_is_the_reports(open_loop: bool) -> None:
    table = a_run(num_requests=300, rate=28.0 if open_loop else None, failed=3)
    told = as_result_keys(summarise(table, len(table), percentiles=(99.0,)))
    for figure in default_figures():
        value = sample_of(figure, [table], open_loop=open_loop).whole.value
        assert value == pytest.approx(told[figure.key]), figure.key


def test_repeats_are_pooled_and_each_has_its_own() -> None:
    runs = [a_table(100, seed=seed) for seed in range(3)]
    (figure,) = parse_figures("p99_ttft")
    sample = sample_of(figure, runs, open_loop=True)
    pooled = np.concatenate([run.first_arrival_s - run.sent_s for run in runs])
    assert sample.whole.value == pytest.approx(float(np.percentile(pooled, 99)) * 1e3)
    assert len(sample.runs) == 3


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("ttft_p99", ["p99_ttft_ms"]),
        ("p99_ttft_ms", ["p99_ttft_ms"]),
        ("P99.9_ITL", ["p99.9_itl_ms"]),
        ("p50_e2e_latency", ["median_e2el_ms"]),
        ("mean_ttft_from_intent", ["mean_ttft_from_intent_ms"]),
        ("ttft", ["mean_ttft_ms", "median_ttft_ms", "p99_ttft_ms"]),
        ("throughput", ["output_throughput"]),
        ("request_throughput", ["request_throughput"]),
    ],
)
def test_figures_go_by_the_names_people_type(word: str, found: list[str]) -> None:
    assert keys(word) == found


@pytest.mark.parametrize("word", ["tfft_p99", "p0_ttft", "p101_ttft", "std_ttft", ""])
def test_what_is_no_figure_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match="is no figure"):
        parse_figures(word)


def test_a_misspelt_figure_is_told_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'ttft'"):
        parse_figures("ttfts")


def test_the_same_requests_are_found_in_any_order() -> None:
    a = a_table(50)
    backwards = RecordTable.of(a.to_records()[::-1])
    rows = same_requests(a, backwards)
    assert rows is not None
    assert [a.request_id[row] for row in rows[0]] == [backwards.request_id[row] for row in rows[1]]


def test_runs_of_other_requests_are_no_pairs() -> None:
    a = a_table(50)
    assert same_requests(a, a_table(51)) is None
    assert same_requests(a, a_table(50, prefix="x")) is None
    assert same_requests(a, replace(a, planned_prompt_tokens=a.planned_prompt_tokens + 1)) is None


@pytest.mark.parametrize("figure", default_figures(), ids=lambda figure: figure.key)
def test_pairs_make_the_interval_narrower_whatever_the_figure(figure: Figure) -> None:
    a, b = a_table(1000, seed=1, prompts_seed=5), a_table(1000, seed=2, prompts_seed=5)
    pair = samples_of_pairs(figure, [a], [b], open_loop=True)
    assert pair is not None
    options = {"higher_is_better": figure.higher_is_better}
    paired = differ(figure.key, *pair, paired=True, **options)
    alone = differ(figure.key, *(sample_of(figure, [side], open_loop=True) for side in (a, b)), **options)
    assert (paired.a, paired.b) == (alone.a, alone.b)
    assert paired.low is not None and paired.high is not None
    assert alone.low is not None and alone.high is not None
    if figure.what not in ("output_throughput", "itl"):
        assert paired.high - paired.low < alone.high - alone.low


def test_a_run_without_a_steady_window_has_a_throughput_and_no_interval() -> None:
    sample = sample_of(of_throughput("output_throughput"), [a_run(num_requests=3)], open_loop=False)
    assert sample.whole.value and "too few requests" in str(sample.whole.why_not)
    ramp = sample_of(
        of_throughput("output_throughput"), [a_run(concurrency=30, num_requests=30)], open_loop=False
    )
    assert ramp.whole.value and "no steady window" in str(ramp.whole.why_not)


def test_a_latency_nobody_has_is_none() -> None:
    table = a_run(num_requests=30).select(np.zeros(30, np.bool_))
    (figure,) = parse_figures("mean_ttft")
    assert sample_of(figure, [table], open_loop=False).whole.value is None
