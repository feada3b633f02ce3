from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prefixlab.bench.ab.arms import Arm, Role, alike, same_arms, worth_arms
from prefixlab.bench.ab.config import AbConfig
from prefixlab.bench.ab.judge import CODE_PATH, HITS, TOGETHER, too_few
from prefixlab.bench.ab.progress import Rounds, told
from prefixlab.bench.ab.report import as_text, keys, notes, sentence, trust
from prefixlab.bench.ab.run import Turns, take_turns
from prefixlab.bench.ab.schedule import order
from prefixlab.bench.compare.difference import Difference, Finding
from prefixlab.bench.config.dataset import DatasetConfig
from prefixlab.bench.config.load import LoadConfig
from prefixlab.bench.config.report import ReportConfig
from prefixlab.bench.config.serve import ServeConfig
from prefixlab.bench.config.sharing import SharedPrefixConfig
from prefixlab.bench.config.target import TargetConfig
from prefixlab.bench.doctor.checks import diagnose
from prefixlab.bench.doctor.evidence import saved_evidence
from prefixlab.bench.ledger.check import Verdict
from prefixlab.bench.runs.serve import Unwatched
from prefixlab.bench.saved.saved_run import find_runs
from prefixlab.core.clock import VirtualClock
from prefixlab.core.errors import ConfigError
from tests.bench.ab.caching_driver import PROMPT_TOKEN_S, Machine, Site
from tests.bench.virtual_driver import Killed

LEN = 256


def asked(shared_pct: float = 50.0, **parts: Any) -> ServeConfig:
    return ServeConfig(
        **{
            "dataset": DatasetConfig(dataset_name="shared-prefix", seed=7),
            "shared_prefix": SharedPrefixConfig(shared_len=LEN, shared_pct=shared_pct, shared_output_len=3),
            "load": LoadConfig(max_concurrency=1),
            "report": ReportConfig(scrape_interval=0.0),
            **parts,
        }
    )


def take(site: Site, ab: AbConfig, arms: Sequence[Arm] | None = None, folder: Path | None = None) -> Turns:
    if arms is None:
        arms, _ = worth_arms(asked(), None)
    return take_turns(
        ab,
        alike(list(arms), ab),
        site.open,
        lambda config, endpoint: None,
        folder=folder,
        watcher=Unwatched(),
    )


def first(turns: Turns, about: str) -> Difference:
    (found,) = (answered for answered in turns.answers() if answered.question.about == about)
    return found.differences[0]


def test_the_worth_of_a_cache_is_split_into_hits_and_code_path() -> None:
    site = Site(Machine(noise=0.01), path_s=0.1 * LEN * PROMPT_TOKEN_S)
    turns = take(site, AbConfig(rounds=24))
    hits, path, both = (first(turns, about) for about in (HITS, CODE_PATH, TOGETHER))
    for found, truth in ((hits, 0.6 / 1.1 - 1), (path, 0.1), (both, 0.6 - 1)):
        assert found.low is not None and found.high is not None
        assert found.low <= truth <= found.high and found.high - found.low < 0.03
    assert (hits.finding, path.finding) == (Finding.BETTER, Finding.WORSE)
    assert (both.a, hits.a) == (path.a, path.b)
    assert "pairs" in hits.method


def test_a_code_path_that_costs_nothing_has_zero_in_its_interval() -> None:
    turns = take(Site(Machine(noise=0.02)), AbConfig(until_ci="1%"))
    path = first(turns, CODE_PATH)
    assert path.low is not None and path.high is not None
    assert path.low <= 0 <= path.high and path.high - path.low <= 0.02
    assert path.finding is Finding.SAME
    assert "within ±1%" in turns.why_ended and turns.num_rounds < 300


def test_the_hit_arm_hits_all_that_is_shared_and_the_others_nothing() -> None:
    turns = take(Site(), AbConfig(rounds=6))
    rates = {arm.name: result.check.hit_rate for arm, result in zip(turns.arms, turns.results, strict=True)}
    assert rates == {"hit": 0.5, "miss": 0.0, "off": 0.0}
    assert {result.check.verdict for result in turns.results} == {Verdict.CONSISTENT}
    assert not any("hits are not" in note or "served from a cache" in note for note in notes(turns))


def test_a_steady_drift_of_the_machine_is_no_difference() -> None:
    """Though the last round takes a third longer than the first."""
    turns = take(Site(Machine(drift=5e-4)), AbConfig(rounds=48))
    path = first(turns, CODE_PATH)
    assert path.change is not None and abs(path.change) < 0.002


def test_arms_of_one_server_send_prompts_that_share_nothing_with_each_other() -> None:
    site = Site()
    take(site, AbConfig(rounds=2))
    on, off = site.drivers["http://on"], site.drivers["http://off"]

    def prompts(driver: Any, *, forced: bool) -> set[bytes]:
        plans = [plan for plan, _ in driver.runs if plan[0].request.request_id.startswith("repeat")]
        return {
            one.request.prompt_token_ids.tobytes()
            for one in itertools.chain(*plans)
            if bool(one.request.extra_body.get("force_miss")) is forced
        }

    hit, miss, nowhere = prompts(on, forced=False), prompts(on, forced=True), prompts(off, forced=False)
    assert len(hit) == len(miss) == len(nowhere) == 2 * (4 + 1)
    assert {prompt[:64] for prompt in hit}.isdisjoint({prompt[:64] for prompt in miss})
    assert hit == nowhere, "another server may be sent the very same"


def test_turns_are_taken_in_the_order_of_the_schedule() -> None:
    site = Site()
    turns = take(site, AbConfig(rounds=6, chunk=1))
    assert turns.orders == [order(number, 3, 7) for number in range(6)]


def test_a_server_that_cannot_be_told_to_miss_is_sent_prompts_that_share_nothing() -> None:
    site = Site(backend="vllm")
    turns = take(site, AbConfig(rounds=6))
    rates = [result.check.hit_rate for result in turns.results]
    assert rates == [0.5, 0.0, 0.0]
    assert any("cannot be told to miss" in note for note in notes(turns))
    bodies = [one.request.extra_body for plan, _ in site.drivers["http://on"].runs for one in plan]
    assert not any(bodies)


def test_without_a_second_server_there_is_a_word_instead_of_the_arm_off() -> None:
    config = asked(target=TargetConfig(base_url="http://on"))
    arms, said = worth_arms(config, None)
    assert [arm.name for arm in arms] == ["hit", "miss"] and "--off-url" in said[0]
    arms, said = worth_arms(config, "http://other/")
    assert arms[2].config.target.base_url == "http://other" and not said
    turns = take(Site(), AbConfig(rounds=4), arms)
    assert [answered.question.about for answered in turns.answers()] == [HITS, CODE_PATH, TOGETHER]


def test_a_server_without_a_cache_cannot_show_what_hits_are_worth() -> None:
    with pytest.raises(ConfigError, match="leave out what lets every request miss"):
        worth_arms(asked(engine={"cache": "none"}), None)
    arms = [Arm("hit", asked(engine={"cache": "none"}), Role.HIT), Arm("miss", asked(), Role.MISS)]
    with pytest.raises(ConfigError, match="no arm could hit"):
        take(Site(), AbConfig(rounds=4), arms)


def test_any_settings_can_be_arms_and_send_the_same_prompts() -> None:
    narrow, wide = (asked(load=LoadConfig(max_concurrency=n)) for n in (1, 2))
    site = Site()
    arms = [
        Arm("narrow", replace(narrow, target=TargetConfig(base_url="http://a"))),
        Arm("wide", replace(wide, target=TargetConfig(base_url="http://b"))),
    ]
    turns = take(site, AbConfig(rounds=4), arms)
    plans = [
        [plan for plan, _ in site.drivers[url].runs if len(plan) == 8] for url in ("http://a", "http://b")
    ]
    assert len(plans[0]) == len(plans[1]) == 4
    for one, other in zip(*plans, strict=True):
        for left, right in zip(one, other, strict=True):
            assert left.request.prompt_token_ids.tolist() == right.request.prompt_token_ids.tolist()  # type: ignore[union-attr]
    (answered,) = turns.answers()
    assert answered.question.about == "wide against narrow"
    assert answered.differences[0].finding is Finding.SAME


def test_prompts_that_cannot_be_made_anew_are_refused() -> None:
    config = asked(
        dataset=DatasetConfig(dataset_name="sharegpt", dataset_path="x"), shared_prefix=SharedPrefixConfig()
    )
    with pytest.raises(ConfigError, match="new prompts for every round"):
        alike([Arm("a", config), Arm("b", config)], AbConfig())


def test_a_request_that_failed_in_one_arm_counts_in_no_pair() -> None:
    site = Site()
    with site.open(asked()):
        site.drivers["http://on"].failing = frozenset({"repeat3-1"})
    turns = take(site, AbConfig(rounds=6))
    assert any("hit: 1 requests failed" in note for note in notes(turns))
    found = first(turns, HITS)
    assert found.num_values == (23, 23) and "pairs" in found.method


def test_with_too_few_requests_it_says_that_nothing_can_be_told() -> None:
    turns = take(Site(), AbConfig(rounds=3))
    assert first(turns, HITS).low is None
    assert "cannot be told: too few" in sentence(turns, turns.answers()[0])


def test_throughput_has_an_interval_of_its_rounds() -> None:
    turns = take(Site(Machine(noise=0.01)), AbConfig(rounds=24, figure=("throughput",)))
    found = first(turns, HITS)
    assert found.low is not None and found.low > 0.3 and found.num_values == (24, 24)
    assert found.finding is Finding.BETTER


def test_it_ends_after_so_many_seconds_of_requests() -> None:
    turns = take(Site(), AbConfig(duration=2.0))
    assert turns.why_ended == "--duration 2 s is over" and 6 < turns.num_rounds < 24


def test_each_arm_is_a_run_of_its_own_and_the_whole_can_be_read(tmp_path: Path) -> None:
    turns = take(Site(), AbConfig(rounds=6), folder=tmp_path)
    runs = {run.path.name: run for run in find_runs(tmp_path)}
    assert list(runs) == ["hit", "miss", "off"]
    assert all(run.finished and len(run.table) == 24 for run in runs.values())
    assert runs["miss"].swept == {"arm": "miss"}
    data = json.loads(json.dumps(keys(turns)))
    assert [arm["verdict"] for arm in data["arms"]] == ["consistent"] * 3
    assert data["order"][0] == [turns.arms[number].name for number in order(0, 3, 7)]
    assert data["differences"][0]["from"] == "miss" and data["differences"][0]["to"] == "hit"
    assert data["differences"][0]["change"] == pytest.approx(-0.5)
    text = as_text(turns, 140)
    assert "what hits are worth (hit against miss): median TTFT" in text
    assert "6 rounds of 4 requests for each arm" in text


@pytest.mark.parametrize("ab", [AbConfig(rounds=6), AbConfig(until_ci="2%", max_rounds=60)])
def test_a_killed_run_goes_on_and_comes_to_what_it_would_have(tmp_path: Path, ab: AbConfig) -> None:
    whole = take(Site(), ab, folder=tmp_path / "whole")
    site = Site()
    with site.open(asked()):
        on = site.drivers["http://on"]
    in_turn, arms = 0, worth_arms(asked(), None)[0]
    play = on._play

    def killed_in_mid_run(planned: Any, load: Any) -> Any:
        nonlocal in_turn
        in_turn += len(planned) == 4
        if in_turn == 7 and len(planned) == 4:
            on.die_after = None
            in_turn += 1
            raise Killed
        return play(planned, load)

    on._play = killed_in_mid_run  # type: ignore[method-assign]
    with pytest.raises(Killed):
        take(site, ab, arms, folder=tmp_path / "killed")
    resumed = take(site, ab, arms, folder=tmp_path / "killed")
    assert resumed.num_rounds == whole.num_rounds and resumed.orders == whole.orders
    assert first(resumed, HITS).change == pytest.approx(first(whole, HITS).change)
    assert all(run.finished for run in find_runs(tmp_path / "killed"))


def test_an_interrupt_keeps_the_rounds_before_it(tmp_path: Path) -> None:
    site = Site()
    with site.open(asked()):
        on = site.drivers["http://on"]
    play, turns_taken = on._play, 0

    def interrupted_in_mid_run(planned: Any, load: Any) -> Any:
        nonlocal turns_taken
        turns_taken += len(planned) == 4
        if turns_taken == 8:
            turns_taken += 1
            raise KeyboardInterrupt
        return play(planned, load)

    on._play = interrupted_in_mid_run  # type: ignore[method-assign]
    turns = take(site, AbConfig(rounds=12), folder=tmp_path)
    assert turns.interrupted and turns.num_rounds == 3
    assert any("interrupted" in note for note in notes(turns))
    assert not any(run.finished for run in find_runs(tmp_path))
    again = take(site, AbConfig(rounds=12), folder=tmp_path)
    assert again.num_rounds == 12 and not again.broken_off


def test_servers_started_anew_show_what_two_processes_differ_by_chance(tmp_path: Path) -> None:
    """Each start of a server is faster or slower by some percent, as processes are."""
    site = Site(Machine(noise=0.002), luck=0.04)
    lucky = take(site, AbConfig(rounds=60), folder=tmp_path / "once")
    once = first(lucky, CODE_PATH)
    turns = take(
        Site(Machine(noise=0.002), luck=0.04), AbConfig(rounds=60, restart_every=6), folder=tmp_path / "ten"
    )
    found = first(turns, CODE_PATH)
    assert turns.num_rounds == 60 and found.method == "10 pairs of repeats"
    assert once.low is not None and once.high is not None and once.high - once.low < 0.01
    assert found.low is not None and found.high is not None
    assert found.low <= 0 <= found.high and found.high - found.low > 0.02
    assert any("--restart-every" in note for note in notes(turns))
    assert [result.check.hit_rate for result in turns.results] == [0.5, 0.0, 0.0]
    with pytest.raises(ConfigError, match="leave out --no-run-dir"):
        take(Site(), AbConfig(restart_every=6))


def test_the_verdict_names_its_figure_and_counts_the_others_and_same_names_its_margin() -> None:
    turns = take(Site(Machine(noise=0.02)), AbConfig(rounds=48))
    hits, path, _ = (sentence(turns, answered) for answered in turns.answers())
    assert "median TTFT" in hits and "of the other 4: mean TTFT -" in hits and ": better" in hits
    assert "no difference beyond ±2%" in path and "no difference beyond ±2%" in as_text(turns, 140)


def test_trust_is_that_of_the_worst_arm_and_the_same_when_it_is_looked_at_anew(tmp_path: Path) -> None:
    turns = take(Site(), AbConfig(rounds=6), folder=tmp_path)
    line = trust(turns)
    assert line is not None and line in as_text(turns, 140)
    grades = {arm["name"]: arm["grade"] for arm in keys(turns)["arms"]}
    assert line.startswith(f"trust: {max(grades.values())} — ") and "(arm hit; miss " in line
    assert "see hit/doctor.txt" in line
    anew = {run.path.name: diagnose(saved_evidence(run)).grade for run in find_runs(tmp_path)}
    assert anew == grades


def test_rounds_say_now_and_then_how_far_they_are_and_what_is_known() -> None:
    clock, said = VirtualClock(), list[str]()
    rounds = Rounds(said.append, clock)

    def one_ended(turns: Turns) -> None:
        clock.advance(4.0)
        rounds(turns)
        rounds(turns)  # as when it is read once more

    arms, _ = worth_arms(asked(), None)
    ab = AbConfig(rounds=8)
    take_turns(
        ab,
        alike(arms, ab),
        Site().open,
        lambda config, endpoint: None,
        folder=None,
        watcher=Unwatched(),
        on_round=one_ended,
    )
    assert [line.split(";")[0] for line in said] == ["round 3 of 8, 20 s left", "round 6 of 8, 8 s left"]
    assert "so far what hits are worth (hit against miss): median TTFT -" in said[-1]
    assert told(600.0) == "10 min"


def test_too_few_rounds_for_an_interval_are_said_before() -> None:
    figures = AbConfig().figures
    few = too_few(figures, 4, 4, 3)
    assert few is not None and few.endswith(
        "median TTFT, mean TTFT, median TPOT, mean E2EL; at least --rounds 6"
    )
    assert too_few(figures, 6, 4, 3) is None
    only_throughput = too_few(figures, 2, 100, 2)
    assert (
        only_throughput is not None
        and "interval of output throughput; at least --rounds 4" in only_throughput
    )


def test_arms_that_do_not_differ_are_an_a_a_trial() -> None:
    assert same_arms([Arm("a", asked()), Arm("b", asked())]) == (
        "a and b do not differ: an A/A trial, whose differences are chance"
    )
    assert same_arms([Arm("a", asked()), Arm("b", asked(25.0))]) is None
    assert same_arms(worth_arms(asked(), None)[0]) is None
