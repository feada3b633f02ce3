"""Each cause provoked on a server that lies, forgets or shares itself out, and named rightly."""

from __future__ import annotations

import pytest

from prefixlab.bench.config.dataset import DatasetConfig
from prefixlab.bench.config.load import LoadConfig
from prefixlab.bench.config.serve import ServeConfig
from prefixlab.bench.config.sharing import GspConfig
from prefixlab.bench.config.target import TargetConfig
from prefixlab.bench.config.warm_cache import WarmCacheOptions
from prefixlab.bench.ledger.causes import Cause
from prefixlab.bench.ledger.check import Verdict
from prefixlab.bench.ledger.ledger import Ledger
from prefixlab.bench.runs.serve import ServeRun
from prefixlab.bench.runs.warm_cache import run_warm_cache
from prefixlab.bench.targets.endpoint import open_endpoint
from tests.bench.fake_server import Behaviour, FakeServer
from tests.bench.test_warm_cache_run import Watching

GROUPS, PER_GROUP = 8, 6


def groups(
    server: FakeServer,
    *,
    cold: bool = False,
    concurrency: int = 1,
    backend: str = "sglang",
    page_size: int | None = None,
) -> Ledger:
    """Prompts of 96 + 32 tokens: eight beginnings, six prompts behind each, in random order."""
    config = ServeConfig(
        target=TargetConfig(base_url=server.url, backend=backend, page_size=page_size),
        dataset=DatasetConfig(dataset_name="generated-shared-prefix", seed=1),
        gsp=GspConfig(
            gsp_num_groups=GROUPS,
            gsp_prompts_per_group=PER_GROUP,
            gsp_system_prompt_len=96,
            gsp_question_len=32,
            gsp_output_len=2,
        ),
        load=LoadConfig(max_concurrency=concurrency),
    )
    with open_endpoint(config.target, server.url, lambda facts: None) as endpoint:
        ledger = ServeRun(endpoint, config, cold=cold).run().ledger
    assert ledger is not None
    return ledger


def sweep(server: FakeServer, backend: str = "sglang") -> list[Ledger]:
    options = WarmCacheOptions(
        total_tokens=120, pcts=(0, 50), num_prompts=6, output_len=2, max_concurrency=2, seed=4, repeats=1
    )
    config = TargetConfig(base_url=server.url, backend=backend)
    with open_endpoint(config, server.url, lambda facts: None) as endpoint:
        runs = run_warm_cache(endpoint, options, Watching())
    return [run.ledger for run in runs if run.ledger is not None]


def cause_of(ledger: Ledger) -> Cause | None:
    return None if ledger.finding is None else ledger.finding.cause


@pytest.mark.parametrize("backend", ["sglang", "vllm"])
def test_a_clean_run_is_consistent_on_every_side(fake_server: FakeServer, backend: str) -> None:
    # As vLLM it says that it holds 100 pages.
    fake_server.behaviour = Behaviour(
        counts="all", is_vllm=backend == "vllm", max_pages=100, info={"max_total_num_tokens": 1600}
    )
    ledger = groups(fake_server, backend=backend)
    assert ledger.is_consistent and ledger.notes == []
    rate = f"{100 * (ledger.check.hit_rate or 0.0):.1f} %"
    assert ledger.line == f"expected {rate} · answers {rate} · server {rate} → CONSISTENT"
    assert ledger.seen.counts is not None
    assert ledger.seen.counts.prompt_tokens == GROUPS * PER_GROUP * 128, "no probe, no trial among them"


def test_a_clean_sweep_is_consistent_on_every_side(fake_server: FakeServer) -> None:
    fake_server.behaviour = Behaviour(counts="all")
    for ledger in sweep(fake_server):
        assert ledger.is_consistent and ledger.seen.counts is not None
        assert ledger.seen.counts.num_requests == 6, "no probe, no warm-up among them"
        assert ledger.seen.counts.cached_tokens == ledger.check.expected_cached_tokens


def test_a_server_that_counts_nothing_is_taken_at_its_answers(fake_server: FakeServer) -> None:
    ledger = groups(fake_server)
    assert ledger.is_consistent
    assert ledger.line == "expected 62.5 % · answers 62.5 % → CONSISTENT"


def test_answers_without_cached_tokens_are_not_reported(fake_server: FakeServer) -> None:
    fake_server.behaviour = Behaviour(reports_cached=False, counts="all")
    ledger = groups(fake_server)
    assert cause_of(ledger) is Cause.NOT_REPORTED and not ledger.is_consistent
    assert "the server's own counters say 3,840 cached tokens for 3,840 expected" in ledger.notes[0]


@pytest.mark.parametrize("backend", ["sglang", "vllm"])
@pytest.mark.parametrize("reports", [True, False])
def test_caching_that_is_off_is_no_hits_and_never_consistent(
    fake_server: FakeServer, backend: str, reports: bool
) -> None:
    fake_server.behaviour = Behaviour(
        caching_off=True, is_vllm=backend == "vllm", counts="all", reports_cached=reports
    )
    assert cause_of(groups(fake_server, backend=backend)) is Cause.NO_HITS


def test_a_sweep_without_a_cache_is_no_hits_also_where_none_were_due(fake_server: FakeServer) -> None:
    fake_server.behaviour = Behaviour(caching_off=True)
    for ledger in sweep(fake_server):
        assert cause_of(ledger) is Cause.NO_HITS and not ledger.is_consistent


def test_misses_from_further_back_are_evictions(fake_server: FakeServer) -> None:
    fake_server.behaviour = Behaviour(max_pages=24)
    ledger = groups(fake_server)
    assert cause_of(ledger) is Cause.EVICTED
    assert "misses come from further back" in ledger.notes[0]


def test_a_cache_that_says_it_is_too_small_is_evicting(fake_server: FakeServer) -> None:
    # Whose policy nobody knows: what it forgets is not foreseen.
    info = {"max_total_num_tokens": 24 * 16, "eviction_policy": "lfu"}
    fake_server.behaviour = Behaviour(max_pages=24, info=info)
    ledger = groups(fake_server)
    assert cause_of(ledger) is Cause.EVICTED
    assert "the cache holds 384 tokens" in ledger.notes[0]


def test_a_prefix_that_is_still_computed_is_overlap(fake_server: FakeServer) -> None:
    fake_server.behaviour = Behaviour(inserts_late=True, first_event_s=0.2)
    ledger = groups(fake_server, concurrency=24)
    assert cause_of(ledger) is Cause.OVERLAP
    assert "before the first that begins alike had its first token" in ledger.notes[0]


def test_replicas_behind_one_address_are_named_where_counters_know_of_one(fake_server: FakeServer) -> None:
    fake_server.behaviour = Behaviour(num_replicas=2, counts="one")
    ledger = groups(fake_server)
    assert cause_of(ledger) is Cause.OTHER_REPLICA
    assert "3,072 of 6,144 prompt tokens that were answered" in ledger.notes[0]


def test_replicas_are_concluded_where_nothing_else_is_left(fake_server: FakeServer) -> None:
    info = {"max_total_num_tokens": 100_000}
    fake_server.behaviour = Behaviour(num_replicas=2, counts="all", info=info)
    ledger = groups(fake_server)
    assert cause_of(ledger) is Cause.OTHER_REPLICA
    assert "by elimination: the cache holds 100,000 tokens" in ledger.notes[0]


def test_replicas_are_a_candidate_where_more_may_be_the_cause(fake_server: FakeServer) -> None:
    fake_server.behaviour = Behaviour(num_replicas=2)
    ledger = groups(fake_server)
    assert cause_of(ledger) is Cause.UNKNOWN and ledger.word == "less than expected"
    assert ledger.finding is not None
    assert {Cause.EVICTED, Cause.OTHER_REPLICA} <= set(ledger.finding.candidates)


@pytest.mark.parametrize("max_pages", [None, 24])
def test_prompts_that_we_did_not_send_are_foreign(fake_server: FakeServer, max_pages: int | None) -> None:
    fake_server.behaviour = Behaviour(counts="all", foreign_tokens=40, max_pages=max_pages)
    ledger = groups(fake_server)
    assert cause_of(ledger) is Cause.FOREIGN and not ledger.is_consistent
    assert f"{48 * 40:,} more than this client sent" in ledger.notes[0]


def test_what_a_run_before_left_is_warm_contamination(fake_server: FakeServer) -> None:
    assert groups(fake_server).is_consistent, "nobody had sent these prompts"
    ledger = groups(fake_server)
    assert cause_of(ledger) is Cause.WARM
    assert "--flush-cache" in ledger.notes[0]
    assert groups(fake_server, cold=True).is_consistent


def test_a_flush_that_says_yes_and_keeps_everything_is_a_lying_reset(fake_server: FakeServer) -> None:
    fake_server.behaviour = Behaviour(flush="lies")
    for ledger in (groups(fake_server, cold=True), *sweep(fake_server)):
        assert cause_of(ledger) is Cause.LYING_RESET and not ledger.is_consistent
        assert ledger.check.verdict is Verdict.CONSISTENT, "for prompts were made anew"


def test_hits_on_prompts_that_nobody_can_have_sent_are_misreported(fake_server: FakeServer) -> None:
    fake_server.behaviour = Behaviour(extra_cached=16)
    assert cause_of(groups(fake_server, cold=True)) is Cause.MISREPORTED


def test_answers_that_contradict_counters_are_misreported(fake_server: FakeServer) -> None:
    fake_server.behaviour = Behaviour(extra_cached=16, counts="all", flush="missing")
    ledger = groups(fake_server)
    assert cause_of(ledger) is Cause.MISREPORTED
    assert "the server's own counters to 3,840; 3,840 were expected" in ledger.notes[0]


def test_pages_of_another_size_are_told_by_the_hits(fake_server: FakeServer) -> None:
    fake_server.behaviour = Behaviour(page_size=32, known_endpoints=frozenset({"models"}))
    ledger = groups(fake_server, backend="openai", page_size=16)
    assert ledger.is_consistent, "96 tokens are whole pages of either size"
    fake_server.behaviour = Behaviour(page_size=64, known_endpoints=frozenset({"models"}))
    ledger = groups(fake_server, backend="openai", page_size=16)
    assert cause_of(ledger) is Cause.PAGE_SIZE
    assert "pages of 64 tokens" in ledger.notes[0]


def test_forced_misses_are_consistent_with_none_expected(fake_server: FakeServer) -> None:
    fake_server.behaviour = Behaviour(force_miss=True)
    ledger = groups(fake_server)
    assert ledger.is_consistent and ledger.notes == ["no hits were expected: forced miss"]


def test_not_one_hit_is_told_apart_from_too_few(fake_server: FakeServer) -> None:
    fake_server.behaviour = Behaviour(force_miss=True, info={"force_miss": False})
    ledger = groups(fake_server)
    assert cause_of(ledger) is Cause.NO_HITS
