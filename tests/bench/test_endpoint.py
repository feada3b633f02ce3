from __future__ import annotations

import sys

import httpx
import pytest

from prefixlab.bench.config.target import TargetConfig
from prefixlab.bench.loadgen.driver import Drive
from prefixlab.bench.loadgen.plan import Load, Planned
from prefixlab.bench.records.record import Outcome
from prefixlab.bench.records.table import RecordTable
from prefixlab.bench.targets.cold_start import Coldness
from prefixlab.bench.targets.control import ServerFacts, why_not_ready
from prefixlab.bench.targets.endpoint import Endpoint, open_endpoint, open_in_process, wait_until_ready
from prefixlab.bench.workloads.wording import Prompt
from prefixlab.core.block_hash import as_token_ids
from prefixlab.core.clock import MonotonicClock
from prefixlab.core.errors import TargetError
from tests.bench.fake_server import FakeServer
from tests.bench.helpers import ScriptedTarget, planned

CLOCK = MonotonicClock()
PROMPT = Prompt(as_token_ids(range(300, 340)))


def no_tokenizer(facts: ServerFacts) -> None:
    return None


def in_process(target: ScriptedTarget, *, flushes: bool = True) -> Endpoint:
    return open_in_process(
        TargetConfig(backend="in-process"),
        target,
        CLOCK,
        info=lambda: {"prefixlab_version": "1", "page_size": 4, "vocab_size": 500, "max_model_len": 100},
        flush=lambda: flushes,
        make_tokenizer=no_tokenizer,
    )


def readiness(**statuses: httpx.Response) -> str | None:
    """What `why_not_ready` says of a server that answers so; 404 elsewhere."""
    paths = {"/health": statuses.get("health"), "/v1/models": statuses.get("models")}
    transport = httpx.MockTransport(lambda request: paths.get(request.url.path) or httpx.Response(404))
    with httpx.Client(base_url="http://server", transport=transport) as client:
        return why_not_ready(client, 1.0)


def models(*names: str) -> httpx.Response:
    return httpx.Response(200, json={"data": [{"id": name} for name in names]})


def test_ready_is_healthy_with_a_model_as_far_as_the_server_has_these_pages() -> None:
    assert readiness(health=httpx.Response(200), models=models("m")) is None
    assert readiness(health=httpx.Response(200)) is None
    assert readiness(models=models("m")) is None
    assert readiness() is None


def test_a_server_that_loads_or_has_no_worker_yet_is_not_ready() -> None:
    assert readiness(health=httpx.Response(503, text="loading"), models=models("m")) == (
        "HTTP 503 from /health: loading"
    )
    assert readiness(health=httpx.Response(200), models=models()) == "/v1/models lists no model"


def test_waiting_ends_as_soon_as_the_server_is_ready_and_sends_it_no_request(fake_server: FakeServer) -> None:
    wait_until_ready(TargetConfig(base_url=fake_server.url), fake_server.url, 30.0, CLOCK)
    assert not fake_server.bodies


def test_waiting_for_a_server_that_never_comes_says_what_was_wrong_last() -> None:
    url = "http://127.0.0.1:9"
    with pytest.raises(TargetError, match=r"not ready within 0\.1 s: could not connect"):
        wait_until_ready(TargetConfig(base_url=url), url, 0.1, CLOCK)


def test_a_question_travels_as_measured_requests_do_and_must_succeed(fake_server: FakeServer) -> None:
    with open_endpoint(TargetConfig(base_url=fake_server.url), fake_server.url, no_tokenizer) as endpoint:
        assert endpoint.ask("first", PROMPT, 3).num_output_tokens == 3
        assert endpoint.ask("second", PROMPT, 3).num_cached_tokens == 32
        fake_server.behaviour.fault = "status"
        with pytest.raises(TargetError, match=r"the third request failed, of random token ids .*HTTP 503"):
            endpoint.ask("third", PROMPT, 3)


def test_requests_go_as_the_settings_say(fake_server: FakeServer) -> None:
    config = TargetConfig(
        base_url=fake_server.url,
        endpoint="/behind/a/gateway",
        header=("X-Tenant=blue",),
        api_key="sesame",
        extra_request_body='{"priority": 7}',
    )
    with open_endpoint(config, fake_server.url, no_tokenizer) as endpoint:
        assert endpoint.ask("first", PROMPT, 3).kernel_stamps == sys.platform.startswith("linux")
    (headers,) = fake_server.headers
    assert headers["x-tenant"] == "blue"
    assert headers["authorization"] == "Bearer sesame"
    assert fake_server.bodies[0]["priority"] == 7


@pytest.mark.parametrize("known", [frozenset({"metrics"}), frozenset({"server_info"}), frozenset()])
def test_a_server_known_by_its_admin_api_is_asked_for_counts_in_every_event(
    fake_server: FakeServer, known: frozenset[str]
) -> None:
    fake_server.behaviour.known_endpoints = known
    fake_server.behaviour.is_vllm = "metrics" in known
    config = TargetConfig(base_url=fake_server.url, backend="openai", model="fake")
    with open_endpoint(config, fake_server.url, no_tokenizer) as endpoint:
        endpoint.ask("first", PROMPT, 3)
    (body,) = fake_server.bodies
    assert body["stream_options"].get("continuous_usage_stats", False) == bool(known)


def test_without_kernel_stamps_the_record_says_so(fake_server: FakeServer) -> None:
    config = TargetConfig(base_url=fake_server.url, kernel_stamps=False)
    with open_endpoint(config, fake_server.url, no_tokenizer) as endpoint:
        assert not endpoint.ask("first", PROMPT, 3).kernel_stamps


@pytest.mark.parametrize("reuse", [True, False])
def test_connections_are_reused_unless_told_otherwise(fake_server: FakeServer, reuse: bool) -> None:
    config = TargetConfig(base_url=fake_server.url, reuse_connections=reuse)
    with open_endpoint(config, fake_server.url, no_tokenizer) as endpoint:
        plan = [Planned(endpoint.request(PROMPT, f"r{i}", 2), 40) for i in range(3)]
        health = endpoint.driver.run(plan, Load(open_loop=False, max_concurrency=1)).health
    assert (health.num_connects, health.num_reused) == ((1, 2) if reuse else (3, 0))


@pytest.mark.parametrize(
    ("limit", "message"),
    [({"read_timeout_s": 0.2}, "silent"), ({"request_timeout_s": 0.2}, "time-out|within")],
)
def test_a_server_that_never_answers_is_given_up(
    fake_server: FakeServer, limit: dict[str, float], message: str
) -> None:
    fake_server.behaviour.fault = "silence"
    config = TargetConfig(base_url=fake_server.url, **limit)  # type: ignore[arg-type]
    with (
        open_endpoint(config, fake_server.url, no_tokenizer) as endpoint,
        pytest.raises(TargetError, match=message),
    ):
        endpoint.ask("trial", PROMPT, 2)


def test_a_long_wait_for_an_answer_is_told(fake_server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefixlab.bench.targets.endpoint.SAY_EVERY_S", 0.1)
    fake_server.behaviour.fault = "silence"
    config = TargetConfig(base_url=fake_server.url, read_timeout_s=1.0)
    said: list[str] = []
    with (
        open_endpoint(config, fake_server.url, no_tokenizer, say=said.append) as endpoint,
        pytest.raises(TargetError),
    ):
        endpoint.ask("trial", PROMPT, 2)
    assert said and all("waiting for the answer to the trial request" in line for line in said)


def test_the_servers_metrics_are_there_as_text_or_none(fake_server: FakeServer) -> None:
    with open_endpoint(TargetConfig(base_url=fake_server.url), fake_server.url, no_tokenizer) as endpoint:
        text = endpoint.control.metrics_text()
        assert text is not None and "sglang:x 1.0" in text
        fake_server.behaviour.known_endpoints = frozenset()
        assert endpoint.control.metrics_text() is None


def test_the_engine_in_this_process_is_an_endpoint_too() -> None:
    endpoint = in_process(ScriptedTarget(CLOCK))
    assert (endpoint.backend, endpoint.page_size, endpoint.facts.max_model_len) == ("in-process", 4, 100)
    assert endpoint.ask("trial", PROMPT, 2).outcome is Outcome.OK
    assert endpoint.start_cold(PROMPT).coldness is Coldness.ASSUMED, "this one reports 0 cached tokens always"
    assert in_process(ScriptedTarget(CLOCK), flushes=False).start_cold(PROMPT).coldness is Coldness.SALTED


def test_an_interrupt_while_asking_is_an_interrupt() -> None:
    class Interrupted:
        def run(self, plan, load, **options):  # type: ignore[no-untyped-def]
            record = planned("r").unsent(0.0)
            return Drive(RecordTable.of([record]), 0.0, interrupted=True)

    endpoint = in_process(ScriptedTarget(CLOCK))
    object.__setattr__(endpoint, "driver", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        endpoint.ask("trial", PROMPT, 2)
