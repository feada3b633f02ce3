"""The simulated engine under the real scheduler, cache and HTTP server, on virtual time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from prefixlab.cache.config import CacheConfig
from prefixlab.core.clock import VirtualClock
from prefixlab.core.errors import ConfigError
from prefixlab.core.hit_oracle import expected_cached_tokens
from prefixlab.core.step_time.built_in import PROFILES
from prefixlab.core.step_time.shape import StepShape
from prefixlab.core.text.byte_tokenizer import FIRST_WORD_ID
from prefixlab.scheduler.config import SchedulerConfig
from prefixlab.server.config import ServerConfig
from prefixlab.server.launch import make_worker
from prefixlab.simulator.config import DEFAULT_KV_TOKENS, DEFAULT_PROFILE, SimConfig
from prefixlab.simulator.engine import SimulatedEngine, load_simulated
from tests.engine.harness import random_tokens
from tests.server.harness import TIMEOUT_S, listening

PAGE_SIZE = 16
PROMPT_LEN = 1024


def load(clock: VirtualClock, config: SimConfig | None = None, **settings: Any) -> SimulatedEngine:
    given = {"page_size": PAGE_SIZE, "num_pages": 512, "max_model_len": None, "seed": 0, "clock": clock}
    return load_simulated(config or SimConfig(), keeps_pace=False, **(given | settings))


@contextmanager
def served(**cache: Any) -> Iterator[httpx.Client]:
    clock = VirtualClock()
    engine = load(clock)
    worker = make_worker(
        engine,
        cache_config=CacheConfig(page_size=PAGE_SIZE, **cache),
        scheduler_config=SchedulerConfig(),
        server_config=ServerConfig(),
        clock=clock,
    )
    with listening(worker) as url, httpx.Client(base_url=url, timeout=TIMEOUT_S) as client:
        yield client


def generate(client: httpx.Client, input_ids: list[int], num_tokens: int = 4, **body: Any) -> dict[str, Any]:
    sampling = {"max_new_tokens": num_tokens, "ignore_eos": True}
    answer = client.post("/generate", json={"input_ids": input_ids, "sampling_params": sampling} | body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def prefill_s(num_cached: int) -> float:
    shape = StepShape.of_prefill(PROMPT_LEN - num_cached, num_cached)
    return PROFILES[DEFAULT_PROFILE].step_time.duration_s(shape)


def test_cached_tokens_are_the_hit_oracles_and_ttft_is_what_the_rest_costs() -> None:
    with served() as client:
        times = []
        for shared in (0, 15, 16, 100, 512, 1000, PROMPT_LEN):
            assert client.post("/flush_cache").json()["success"]
            prompt = random_tokens(PROMPT_LEN, shared, 32_000)
            if shared:
                generate(client, prompt[:shared], num_tokens=1)
            meta = generate(client, prompt)["meta_info"]
            num_cached = expected_cached_tokens(shared, PROMPT_LEN, PAGE_SIZE)
            assert meta["cached_tokens"] == num_cached
            assert meta["prefill_time"] == pytest.approx(prefill_s(num_cached))
            times.append(meta["prefill_time"])
        assert times == sorted(times, reverse=True)
        assert times[-1] < times[0] / 3


def test_output_is_the_same_whatever_the_cache_did() -> None:
    prompt = random_tokens(PROMPT_LEN, 7, 32_000)
    with served() as client, served(cache="none") as plain, served(force_miss=True) as missing:
        cold, warm = generate(client, prompt, 20), generate(client, prompt, 20)
        assert warm["meta_info"]["cached_tokens"] == PROMPT_LEN - PAGE_SIZE
        forced = generate(client, prompt, 20, force_miss=True)
        others = [generate(server, prompt, 20) for server in (plain, plain, missing, missing)]
        for answer in (forced, *others):
            assert answer["meta_info"]["cached_tokens"] == 0
        assert all(one["output_ids"] == cold["output_ids"] for one in (warm, forced, *others))


def test_a_decode_step_takes_what_its_context_costs() -> None:
    with served() as client:
        meta = generate(client, random_tokens(PROMPT_LEN, 1, 32_000), 11)["meta_info"]
    step_time = PROFILES[DEFAULT_PROFILE].step_time
    contexts = [PROMPT_LEN + i for i in range(1, 11)]
    steps = [StepShape(num_decode_rows=1, num_decode_context_tokens=context) for context in contexts]
    assert meta["decode_time"] == pytest.approx(sum(map(step_time.duration_s, steps)))


def test_its_text_is_words_and_its_logprobs_are_sensible() -> None:
    with served() as client:
        answer = generate(client, [1, 2, 3], 30, return_logprob=True, top_logprobs_num=2, logprob_start_len=0)
        assert min(answer["output_ids"]) >= FIRST_WORD_ID
        assert len(answer["text"].split()) == 30
        meta = answer["meta_info"]
        assert [one[0] for one in meta["output_token_logprobs"]] == [0.0] * 30
        assert [len(one) for one in meta["output_top_logprobs"]] == [1] * 30
        assert len(meta["input_token_logprobs"]) == 3
        chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "logprobs": True}
        content = client.post("/v1/chat/completions", json=chat).json()["choices"][0]
        assert [one["logprob"] for one in content["logprobs"]["content"]] == [0.0] * 3


def test_metrics_count_hits() -> None:
    with served() as client:
        prompt = random_tokens(PROMPT_LEN, 7, 32_000)
        for _ in range(2):
            generate(client, prompt)
        lines = client.get("/metrics").text.splitlines()
    assert f'prefixlab:cached_tokens_total{{tier="device"}} {PROMPT_LEN - PAGE_SIZE}.0' in lines


def test_without_a_number_there_are_the_pages_of_one_gpu() -> None:
    assert load(VirtualClock(), num_pages=None).num_pages == DEFAULT_KV_TOKENS // PAGE_SIZE
    engine = load(VirtualClock(), SimConfig(sim_speedup=2.0))
    assert "h200-llama-3.1-8b" in engine.describe() and "2 times" in engine.describe()
    with pytest.raises(ConfigError, match="--max-model-len"):
        load(VirtualClock(), max_model_len=1)


LIBRARIES = ("torch", "safetensors", "tokenizers", "huggingface_hub", "jinja2")


@pytest.mark.service
def test_a_simulated_server_answers_without_loading_anything_of_the_engine(tmp_path: Path) -> None:
    script = f"""
import json, os, signal, sys, threading, urllib.request
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {LIBRARIES!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
ready = {str(tmp_path / "ready")!r}
def ask():
    while not os.path.exists(ready):
        threading.Event().wait(0.02)
    url = json.load(open(ready))["url"] + "/v1/completions"
    body = json.dumps({{"model": "sim", "prompt": "a b c", "max_tokens": 3}}).encode()
    print(urllib.request.urlopen(urllib.request.Request(url, body)).read().decode(), flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=ask, daemon=True).start()
from prefixlab.cli.main import main
code = main(["serve", "--model", "sim", "--port", "0", "--ready-file", ready])
assert not set({LIBRARIES!r}) & set(sys.modules)
sys.exit(code)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[1])
    assert answer["usage"]["completion_tokens"] == 3
