"""A bounded soak of the real server process: two minutes of traffic that misbehaves, then the books are read.

Bounds: CLIENTS connections at a time, SOAK_S seconds, prompts of at most 1,500 tokens, loopback only.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import httpx
import pytest

from prefixlab.cli.embedded import embedded_server
from prefixlab.core.clock import MonotonicClock

SOAK_S = 120.0
CLIENTS = 12
NUM_PAGES = 300
PAGE_SIZE = 16
# A small pool (4,800 tokens), short chunks: retraction, eviction and mid-chunk aborts all happen.
WORDS = ["--model", "tiny", "--num-pages", str(NUM_PAGES), "--page-size", str(PAGE_SIZE)]
WORDS += ["--chunked-prefill-size", "128", "--schedule-conservativeness", "0.1"]


@pytest.mark.slow
@pytest.mark.service
@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_two_minutes_of_aborts_and_disconnects_leave_every_page_accounted_for(policy: str) -> None:
    seed = random.randrange(2**32)
    print(f"soak seed {seed}")
    with embedded_server([*WORDS, "--schedule-policy", policy]) as url:
        outcomes = asyncio.run(soak(url, seed, priorities=[0, 0, 50] if policy == "priority" else [0]))
    print(dict(outcomes))
    assert outcomes["refused"] == 0
    for outcome in ("ok", "disconnected", "aborted"):
        assert outcomes[outcome] > 10, f"the soak hardly provoked {outcome!r}: {dict(outcomes)}"


async def soak(url: str, seed: int, priorities: list[int]) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    clock = MonotonicClock()
    end_s = clock.now() + SOAK_S / 2  # the test runs twice
    async with httpx.AsyncClient(base_url=url, timeout=60.0) as client:
        async with asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                group.create_task(
                    one_client(client, random.Random(f"{seed}-{number}"), clock, end_s, outcomes, priorities)
                )
        await settle(client, clock)
        info = (await client.get("/server_info")).json()
        tokens = info["tokens"]
        assert tokens["in_use"] == 0 and tokens["protected"] == 0, tokens
        assert tokens["free"] + tokens["cached"] == tokens["capacity"] == NUM_PAGES * PAGE_SIZE
        flushed = (await client.post("/flush_cache")).json()
        assert flushed["success"] and flushed["num_dropped_tokens"] == tokens["cached"]
        assert (await client.get("/server_info")).json()["tokens"]["free"] == tokens["capacity"]
        assert (await client.get("/health_generate")).status_code == 200
    return outcomes


async def one_client(
    client: httpx.AsyncClient,
    rng: random.Random,
    clock: MonotonicClock,
    end_s: float,
    outcomes: Counter[str],
    priorities: list[int],
) -> None:
    while clock.now() < end_s:
        shared = [7 + rng.randrange(3)] * rng.choice([0, 64, 600])  # three families of prefixes
        own = [rng.randrange(300, 4000) for _ in range(rng.randrange(1, 900))]
        rid = f"soak-{rng.getrandbits(64):x}"
        sampling = {"max_new_tokens": rng.randrange(1, 120), "ignore_eos": True}
        body = {"input_ids": shared + own, "rid": rid, "stream": True, "sampling_params": sampling}
        body["priority"] = rng.choice(priorities)
        body["force_miss"] = rng.random() < 0.1
        plan = rng.choice(["finish", "finish", "disconnect", "disconnect early", "abort"])
        try:
            async with asyncio.timeout(0.01 if plan == "disconnect early" else 60.0):
                outcomes[await follow(client, body, plan, rng.randrange(1, 20))] += 1
        except TimeoutError:
            assert plan == "disconnect early", f"a request hung for a minute: {body['rid']}"
            outcomes["disconnected"] += 1


async def follow(client: httpx.AsyncClient, body: dict[str, object], plan: str, num_events: int) -> str:
    """Send one request and do with its stream as planned; says what came of it."""
    num_seen, last = 0, ""
    async with client.stream("POST", "/generate", json=body) as response:
        if response.status_code != 200:
            print(response.status_code, await response.aread())
            return "refused"
        async for line in response.aiter_lines():
            if not line.startswith("data: "):
                continue
            num_seen += 1
            last, before = line, last
            if num_seen == num_events and plan == "disconnect":
                return "disconnected"
            if num_seen == num_events and plan == "abort":
                await client.post("/abort_request", json={"rid": body["rid"]})
    assert last == "data: [DONE]", f"a stream ended without saying so: {last}"
    return "aborted" if '"abort"' in before else "ok"


async def settle(client: httpx.AsyncClient, clock: MonotonicClock) -> None:
    deadline_s = clock.now() + 30.0
    while not (await client.get("/server_info")).json()["is_idle"]:
        assert clock.now() < deadline_s, "requests linger after every client has gone"
        await asyncio.sleep(0.1)
