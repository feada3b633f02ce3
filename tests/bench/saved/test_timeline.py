"""Client and server second by second, on one time axis."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pytest

from prefixlab.bench.records.record import Outcome, Record
from prefixlab.bench.saved.saved_run import open_run
from prefixlab.bench.saved.timeline import COLUMNS, timeline
from tests.bench.helpers import ok_record
from tests.bench.saved.saved_runs import save_metrics, save_run

TWO = (
    ok_record("a", intended_s=0.0, arrivals_s=(0.5, 1.5)),
    ok_record("b", intended_s=1.0, arrivals_s=(1.25, 2.5), counts=(1, 3)),
)


def test_the_clients_columns_are_what_the_records_say(tmp_path: Path) -> None:
    columns = timeline(open_run(save_run(tmp_path / "run", records=TWO)))

    assert tuple(columns) == COLUMNS
    assert columns["time_s"].tolist() == [0.0, 1.0, 2.0]
    assert columns["client_in_flight"].tolist() == pytest.approx([1.0, 1.5, 0.5])
    assert columns["client_output_tokens_s"].tolist() == [1.0, 2.0, 3.0]
    assert columns["client_requests_s"].tolist() == [0.0, 1.0, 1.0]
    np.testing.assert_allclose(columns["client_ttft_p50_ms"], [500.0, 250.0, np.nan])
    assert np.isnan(columns["server_running"]).all()


OURS = """prefixlab:running_requests {running}
prefixlab:waiting_requests 2
prefixlab:pages{{state="free"}} 50
prefixlab:pages{{state="evictable"}} 25
prefixlab:pages{{state="protected"}} 15
prefixlab:pages{{state="in_use"}} 10
prefixlab:cached_tokens_total{{tier="device"}} {cached}
prefixlab:cached_tokens_total{{tier="host"}} 5
prefixlab:prompt_tokens_total {prompt}
prefixlab:generation_tokens_total {prompt}
prefixlab:evicted_pages_total 0
"""
VLLM = """vllm:num_requests_running{{engine="0"}} {running}
vllm:num_requests_waiting{{engine="0"}} 2
vllm:kv_cache_usage_perc{{engine="0"}} 0.25
vllm:prefix_cache_hits_total{{engine="0"}} {cached}
vllm:prefix_cache_queries_total{{engine="0"}} {prompt}
vllm:generation_tokens_total{{engine="0"}} {prompt}
"""
SGLANG = """sglang:num_running_reqs{{model_name="m"}} {running}
sglang:num_queue_reqs{{model_name="m"}} 2
sglang:token_usage{{model_name="m"}} 0.25
sglang:cached_tokens_total{{model_name="m",cache_source="device"}} {cached}
sglang:prompt_tokens_total{{model_name="m"}} {prompt}
sglang:generation_tokens_total{{model_name="m"}} {prompt}
"""


@pytest.mark.parametrize("text", [OURS, VLLM, SGLANG], ids=["prefixlab", "vllm", "sglang"])
def test_what_servers_say_in_their_own_words_is_one_set_of_figures(tmp_path: Path, text: str) -> None:
    run = save_run(tmp_path / "run", records=TWO)
    told = [(0, 0, 0), (1, 100, 10), (1, 200, 60), (0, 200, 60)]
    beats = [text.format(running=running, prompt=prompt, cached=cached) for running, prompt, cached in told]
    save_metrics(run, dict(zip((-0.5, 1.0, 2.0, 3.0), beats, strict=True)))

    columns = timeline(open_run(run))

    assert columns["server_running"].tolist() == pytest.approx([0.0, 1.0, 1.0])
    assert columns["server_queued"].tolist() == pytest.approx([2.0, 2.0, 2.0])
    assert columns["server_cache_usage"].tolist() == pytest.approx([0.25, 0.25, 0.25])
    np.testing.assert_allclose(columns["server_hit_rate"], [0.1, 0.5, np.nan])
    # By 100 from -0.5 to 1 s, and all of it behind 0, for nothing was asked before.
    assert columns["server_output_tokens_s"].tolist() == pytest.approx([100.0, 100.0, 0.0])


def test_of_several_servers_counts_are_added_and_shares_are_means(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", records=TWO)
    for segment, url, usage in ((0, "one", 0.2), (0, "other", 0.4)):
        text = f"vllm:num_requests_running 3\nvllm:kv_cache_usage_perc {usage}\n"
        save_metrics(run, {0.0: text, 3.0: text}, segment=segment, url=url)
        (run / "segments/0000/metrics.parquet").rename(run / f"{url}.parquet")

    both = f"['{run}/one.parquet', '{run}/other.parquet']"
    duckdb.execute(
        f"COPY (SELECT 0::BIGINT AS segment, * FROM read_parquet({both})) TO '{run}/metrics.parquet'"
    )

    columns = timeline(open_run(run))

    assert columns["server_running"].tolist() == pytest.approx([6.0] * 3)
    assert columns["server_cache_usage"].tolist() == pytest.approx([0.3] * 3)


def test_a_server_that_was_started_anew_counts_from_nothing(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", records=TWO)
    save_metrics(
        run,
        {
            time_s: f"vllm:generation_tokens_total {count}\n"
            for time_s, count in ((0.0, 1000), (1.0, 1010), (2.0, 4), (3.0, 4))
        },
    )

    assert timeline(open_run(run))["server_output_tokens_s"].tolist() == pytest.approx([10.0, 4.0, 0.0])


def test_what_was_not_looked_at_is_not_told(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", records=TWO)
    save_metrics(run, {0.0: "vllm:num_requests_running 1\n", 1.0: "vllm:num_requests_running 1\n", 2.0: None})

    np.testing.assert_allclose(timeline(open_run(run))["server_running"], [1.0, np.nan, np.nan])


def test_a_run_that_is_under_way_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", records=TWO)
    save_metrics(run, {0.0: "vllm:num_requests_running 1\n", 3.0: "vllm:num_requests_running 1\n"})
    (run / "metrics.parquet").unlink()

    assert timeline(open_run(run))["server_running"].tolist() == pytest.approx([1.0] * 3)


def test_stretches_have_time_axes_of_their_own(tmp_path: Path) -> None:
    records = (*TWO, ok_record("c", arrivals_s=(0.5,), segment=1))
    columns = timeline(open_run(save_run(tmp_path / "run", records=records)))

    assert columns["segment"].tolist() == [0.0, 0.0, 0.0, 1.0]
    assert columns["time_s"].tolist() == [0.0, 1.0, 2.0, 0.0]


def test_a_run_in_which_nothing_was_sent_has_no_steps(tmp_path: Path) -> None:

    unsent = Record("r", Outcome.UNSENT, intended_s=0.0)

    assert len(timeline(open_run(save_run(tmp_path / "run", records=[unsent])))["time_s"]) == 0


def test_requests_that_never_ended_are_under_way_to_the_end(tmp_path: Path) -> None:
    cut_off = Record("r", Outcome.CANCELLED, intended_s=0.0, sent_s=0.25)
    columns = timeline(open_run(save_run(tmp_path / "run", records=[cut_off])))

    assert columns["client_in_flight"].tolist() == pytest.approx([0.75])
    assert np.isnan(columns["client_ttft_p50_ms"]).all()


def test_what_grew_before_the_run_is_not_of_it(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", records=TWO)
    counts = ((-2.0, 0), (-1.0, 50), (1.0, 60), (3.0, 60))
    save_metrics(run, {time_s: f"vllm:generation_tokens_total {count}\n" for time_s, count in counts})

    assert timeline(open_run(run))["server_output_tokens_s"].tolist() == pytest.approx([10.0, 0.0, 0.0])
