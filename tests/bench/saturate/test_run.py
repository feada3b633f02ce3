from __future__ import annotations

import contextlib
import heapq
import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefixlab.bench.config.dataset import DatasetConfig
from prefixlab.bench.config.load import LoadConfig
from prefixlab.bench.config.report import ReportConfig
from prefixlab.bench.config.serve import ServeConfig
from prefixlab.bench.config.target import TargetConfig
from prefixlab.bench.loadgen.plan import Load, Planned
from prefixlab.bench.metrics.goodput import Objectives
from prefixlab.bench.records.record import Record
from prefixlab.bench.runs.serve import Unwatched, Watcher
from prefixlab.bench.saturate.config import SaturateConfig
from prefixlab.bench.saturate.report import as_text, keys, sentence
from prefixlab.bench.saturate.run import Found, find_knee
from prefixlab.bench.targets.endpoint import Endpoint
from prefixlab.bench.workloads.tokens import Vocabulary
from prefixlab.bench.workloads.wording import IdWording
from prefixlab.core.errors import ConfigError, TargetError
from tests.bench.runs.test_serve_run import FACTS, FakeControl
from tests.bench.virtual_driver import VirtualDriver

NUM_TOKENS = 10


@dataclass
class QueueDriver(VirtualDriver):
    """A server of so many slots on virtual time, first come first served: NUM_TOKENS take NUM_TOKENS ·
    `token_s` each, so it carries num_slots / (NUM_TOKENS · token_s) requests per second."""

    num_slots: int = 8
    token_s: float = 0.02

    @property
    def capacity(self) -> float:
        return self.num_slots / (NUM_TOKENS * self.token_s)

    def _play(self, planned: list[Planned], load: Load) -> list[Record]:
        client = [0.0] * (load.max_concurrency or len(planned))
        server = [0.0] * self.num_slots
        records = []
        for one in planned:
            free_s = heapq.heappop(client)
            intended_s = one.offset_s if load.open_loop else free_s
            sent_s = max(intended_s, free_s)
            begun_s = max(sent_s, heapq.heappop(server))
            arrivals = tuple(begun_s + self.token_s * (n + 1) for n in range(one.request.max_new_tokens))
            heapq.heappush(server, arrivals[-1])
            heapq.heappush(client, arrivals[-1])
            records.append(self._record(one, intended_s, sent_s, arrivals))
        return sorted(records, key=lambda record: record.last_s or record.intended_s)


def endpoint(driver: VirtualDriver) -> Endpoint:
    return Endpoint(
        url="http://x",
        backend="sglang",
        model="m",
        driver=driver,
        num_workers=None,
        control=FakeControl(),
        facts=FACTS,
        warnings=(),
        wording=IdWording(Vocabulary.of_size(4096, "for the test")),
        page_size=16,
        expects_miss=None,
        ignore_eos=True,
        extra_body={},
    )


def probes_of(seed: int = 0, goodput: str = "ttft:200", **load: Any) -> ServeConfig:
    return ServeConfig(
        target=TargetConfig(base_url="http://x"),
        dataset=DatasetConfig(random_input_len=40, random_output_len=NUM_TOKENS, seed=seed),
        load=LoadConfig(**load),
        report=ReportConfig(goodput=tuple(goodput.split()), scrape_interval=0.0),
    )


@contextlib.contextmanager
def unwatched(config: ServeConfig) -> Iterator[Watcher]:
    yield Unwatched()


def asked(
    config: SaturateConfig,
    probes: ServeConfig,
    driver: VirtualDriver,
    folder: Path | None = None,
    known: Found | None = None,
) -> Generator[Found, None, None]:
    yield from find_knee(
        config,
        probes,
        endpoint(driver),
        lambda config, endpoint: None,
        folder=folder,
        watch=unwatched,
        say=lambda words: None,
        known=known,
    )


def find(config: SaturateConfig, probes: ServeConfig, driver: VirtualDriver) -> Found:
    *_, found = asked(config, probes, driver)
    return found


def knee_by_grid(goodput: str) -> float:
    """The slow twin: long runs over a fine grid of rates; the largest of which 95 % are good."""
    rng = np.random.default_rng(1)
    driver = QueueDriver()
    count, service_s = 40_000, NUM_TOKENS * driver.token_s
    limit_s = Objectives.parse(goodput.split()).ttft_s
    assert limit_s is not None
    gaps = rng.exponential(1.0, count)
    best = 0.0
    for rate in np.arange(0.80, 1.02, 0.005) * driver.capacity:
        due_s = np.cumsum(gaps / rate)
        slots, good = [0.0] * driver.num_slots, 0
        for at_s in due_s.tolist():
            begun_s = max(at_s, heapq.heappop(slots))
            heapq.heappush(slots, begun_s + service_s)
            good += begun_s + driver.token_s - at_s <= limit_s
        if good / count >= 0.95:
            best = float(rate)
    return best


def test_evenly_spaced_requests_are_carried_up_to_the_capacity() -> None:
    """A knee that is known and sharp: within 5 % in at most ten probes, and said to be, at every seed."""
    for seed in range(10):
        found = find(SaturateConfig(burstiness=math.inf), probes_of(seed=seed), QueueDriver())
        assert found.answer.load == pytest.approx(QueueDriver().capacity, rel=0.05)
        assert found.answer.settled and len(found.probes) <= 10


@pytest.mark.slow
def test_random_arrivals_are_carried_as_far_as_a_grid_of_long_runs_says() -> None:
    """A soft knee, below the capacity: nearly all are within 5 % of it, and most intervals hold it."""
    truth = knee_by_grid("ttft:200")
    assert 0.8 * QueueDriver().capacity < truth < 0.9 * QueueDriver().capacity
    config = SaturateConfig(probe_duration=120.0)
    answers = [find(config, probes_of(seed=100 * seed), QueueDriver()).answer for seed in range(20)]
    within = [one.load == pytest.approx(truth, rel=0.05) for one in answers]
    inside = [(one.low or 0.0) <= truth <= (one.high or math.inf) for one in answers]
    assert sum(within) >= 17, sum(within)
    assert sum(inside) >= 16, sum(inside)


def test_a_concurrency_is_found_as_a_whole_number() -> None:
    """Of 8 slots a ninth request waits for a whole answer of 0.2 s."""
    found = find(SaturateConfig(find="concurrency"), probes_of(goodput="ttft:100"), QueueDriver())
    assert found.answer.load == 8
    assert "holds 8 in flight (95% sure" in sentence(found, Objectives.parse(["ttft:100"]))
    assert found.capacity is None, "it begins with a guess"


def test_prompts_are_other_ones_at_every_probe() -> None:
    driver = QueueDriver()
    find(SaturateConfig(max_probes=3), probes_of(), driver)
    firsts = [
        tuple(planned[0].request.prompt_token_ids.tolist())
        for planned, _ in driver.runs
        if planned[0].request.prompt_token_ids is not None and len(planned) > 1
    ]
    assert len(firsts) == len(set(firsts)) == 4


def test_where_no_load_meets_the_answer_says_so() -> None:
    found = find(SaturateConfig(max_probes=4), probes_of(goodput="ttft:1"), QueueDriver())
    assert found.answer.load is None
    assert "no probe met them" in sentence(found, Objectives.parse(["ttft:1"]))


def test_where_every_load_meets_there_is_a_lower_bound_only() -> None:
    config = SaturateConfig(find="concurrency", max_probes=3)
    found = find(config, probes_of(goodput="ttft:60000"), QueueDriver())
    assert found.answer.high is None
    assert "holds at least" in sentence(found, Objectives.parse(["ttft:60000"]))


def test_a_search_that_was_broken_off_goes_on_where_it_stood(tmp_path: Path) -> None:
    config, probes = SaturateConfig(burstiness=math.inf), probes_of()
    states = asked(config, probes, QueueDriver(), tmp_path)
    next(states)
    second = next(states)
    kept, begun = second.to_json(), list(second.probes)
    states.close()
    again = QueueDriver()
    *_, found = asked(config, probes, again, tmp_path, known=Found.from_json(config, kept))
    whole = find(config, probes, QueueDriver())
    assert found.probes[:2] == begun
    assert [probe.load for probe in found.probes] == [probe.load for probe in whole.probes]
    measured = [planned for planned, _ in again.runs if len(planned) > 1]
    assert len(measured) == len(found.probes) - 2, "what was finished was only read"
    assert len(found.results) == len(found.probes)


def test_an_interrupted_probe_shows_nothing() -> None:
    driver = QueueDriver(stop_after=50)
    found = find(SaturateConfig(start=20.0), probes_of(flush_cache=False), driver)
    assert found.interrupted and not found.probes
    assert sentence(found, Objectives.parse(["ttft:200"])) == "nothing was found out"
    assert keys(found, Objectives.parse(["ttft:200"]))["load"] is None


def test_a_server_that_answers_nothing_is_told_before_the_search() -> None:
    driver = QueueDriver(failing=frozenset(str(number) for number in range(10_000)))
    with pytest.raises(TargetError, match="nothing came through a closed loop of 64: 256 reset"):
        find(SaturateConfig(), probes_of(), driver)


@dataclass
class RefusingDriver(QueueDriver):
    """Refuses the first few of what is asked outside a measurement."""

    refusals: int = 0

    def _record(self, one: Planned, intended_s: float, sent_s: float, arrivals: tuple[float, ...]) -> Record:
        refused = one.request.request_id == "probe" and self.refusals > 0
        self.refusals -= refused
        self.failing = frozenset({"probe"}) if refused else frozenset()
        return super()._record(one, intended_s, sent_s, arrivals)


def test_a_refusal_of_what_is_not_measured_does_not_end_a_search() -> None:
    config = SaturateConfig(start=40.0, max_probes=3)
    assert len(find(config, probes_of(), RefusingDriver(refusals=2)).probes) == 3
    with pytest.raises(TargetError, match="the probe request failed"):
        find(config, probes_of(), RefusingDriver(refusals=100))


def test_the_report_has_every_probe_and_the_answer_last() -> None:
    objectives = Objectives.parse(["ttft:200"])
    found = find(SaturateConfig(), probes_of(), QueueDriver())
    text = as_text(found, objectives, 140)
    assert text.splitlines()[-1].startswith("holds ")
    assert text.count("│") >= 8 * len(found.probes)
    data = keys(found, objectives)
    assert data["low"] <= data["load"] <= data["high"]
    assert [probe["load"] for probe in data["probes"]] == [probe.load for probe in found.probes]


@pytest.mark.parametrize(
    ("probes", "complaint"),
    [
        (ServeConfig(), "give --goodput"),
        (probes_of(request_rate=3.0), "--request-rate is decided by the search"),
        (probes_of(stage=("1:1",)), "--stage is decided by the search"),
        (probes_of(duration=3.0, request_rate=math.inf), "--duration is decided by the search"),
    ],
)
def test_what_the_search_decides_is_refused(probes: ServeConfig, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        SaturateConfig().check(probes)


def test_a_cap_on_concurrency_may_stand_beside_a_rate_but_not_beside_itself() -> None:
    SaturateConfig().check(probes_of(max_concurrency=4))
    with pytest.raises(ConfigError, match="--max-concurrency is decided"):
        SaturateConfig(find="concurrency").check(probes_of(max_concurrency=4))


@pytest.mark.parametrize(
    "wrong",
    [{"share": 1.0}, {"tolerance": 0.0}, {"max_probes": 1}, {"start": -1.0}, {"probe_duration": 0.0}],
)
def test_nonsense_is_refused_by_its_flag(wrong: dict[str, Any]) -> None:
    name = {"start": "from"}.get(*wrong, next(iter(wrong)))
    with pytest.raises(ConfigError, match="--" + name.replace("_", "-")):
        SaturateConfig(**wrong)
