"""The benchmarks against the real engine, embedded: what they expect of its cache is what it does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from prefixlab.cli.embedded import embedded_server
from prefixlab.cli.main import main
from prefixlab.core.clock import MonotonicClock, sleep
from prefixlab.core.errors import EngineError, TargetError

pytestmark = pytest.mark.service

SMALL = ["--total-tokens", "400", "--num-prompts", "6", "--output-len", "4", "--repeats", "1"]


def warm_cache(tmp_path: Path, *words: str) -> list[dict[str, Any]]:
    """Run a strict sweep on the embedded engine; its rows."""
    path = tmp_path / "out.jsonl"
    assert main(["bench", "warm-cache", *SMALL, "--strict", "--output-file", str(path), *words]) == 0
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("page_size", [1, 16, 64])
def test_the_engine_hits_as_the_oracle_says_at_every_point(tmp_path: Path, page_size: int) -> None:
    rows = warm_cache(tmp_path, "--page-size", str(page_size))
    assert [row["shared_prefix_pct"] for row in rows] == [0, 25, 50, 75, 90, 95, 99]
    for row in rows:
        assert row["cached_tokens"] == 6 * (row["prefix_len"] // page_size * page_size)
        assert row["cold_start"] == "proven"
        assert row["page_size"] == page_size
        assert row["total_output"] == 24


@pytest.mark.parametrize("backend", ["openai", "openai-chat"])
def test_it_does_so_through_every_api(tmp_path: Path, backend: str) -> None:
    rows = warm_cache(tmp_path, "--backend", backend, "--pcts", "0,50,90", "--page-size", "16")
    assert [row["cached_tokens"] for row in rows] == [0, 6 * 192, 6 * 352]
    assert {row["cold_start"] for row in rows} == {"proven"}


@pytest.mark.parametrize("backend", ["openai", "openai-chat"])
def test_it_does_so_to_the_single_token(tmp_path: Path, backend: str) -> None:
    warm_cache(tmp_path, "--backend", backend, "--pcts", "0,33,90", "--page-size", "1")


@pytest.mark.parametrize(
    "words",
    [
        ["--chunked-prefill-size", "64"],
        ["--schedule-policy", "lpm", "--enable-mixed-chunk"],
        ["--max-concurrency", "6", "--schedule-policy", "dfs-weight", "--chunked-prefill-size", "48"],
        # Room for one prompt and a half: what is not the shared prefix must make way all the time.
        ["--num-pages", "40", "--max-concurrency", "1"],
        ["--dtype", "bfloat16"],
    ],
)
def test_it_does_so_however_it_schedules(tmp_path: Path, words: list[str]) -> None:
    warm_cache(tmp_path, "--pcts", "50,90", *words)


OTHER_POLICIES = [
    pytest.param(name, marks=pytest.mark.slow) for name in ("dfs-weight", "lof", "random", "priority")
]


@pytest.mark.parametrize("policy", ["fcfs", "lpm", *OTHER_POLICIES])
def test_a_forced_miss_hits_nowhere_under_any_policy(tmp_path: Path, policy: str) -> None:
    words = [
        "--force-miss",
        "--schedule-policy",
        policy,
        "--chunked-prefill-size",
        "128",
        "--pcts",
        "0,50,99",
    ]
    rows = warm_cache(tmp_path, *words)
    assert [row["cached_tokens"] for row in rows] == [0, 0, 0]
    assert {row["expects_miss"] for row in rows} == {"forced miss"}
    assert {row["verdict"] for row in rows} == {"consistent"}


def test_a_cache_that_shares_nothing_hits_nowhere(tmp_path: Path) -> None:
    rows = warm_cache(tmp_path, "--cache", "none", "--pcts", "90")
    assert [row["cached_tokens"] for row in rows] == [0]


def test_forcing_a_miss_on_a_cache_that_shares_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "warm-cache", *SMALL, "--cache", "none", "--force-miss"]) == 2
    assert "--force-miss" in capsys.readouterr().err


def a_trace(path: Path, prompt_tokens: int = 200) -> Path:
    lines = [
        {
            "timestamp": 100 * i,
            "input_length": prompt_tokens + i,
            "output_length": 4,
            "hash_ids": [0, 1 + i // 3, 10 + i, 90 + i],
        }
        for i in range(9)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def replay(trace: Path, *words: str) -> dict[str, Any]:
    """A strict replay on the embedded engine; its result."""
    words = ("--block-size", "64", "--length-scale", "1", "--no-run-dir", *words)
    output = trace.with_suffix(".out")
    assert main(["bench", "trace", str(trace), "--strict", "--output-file", str(output), *words]) == 0
    (row,) = map(json.loads, output.read_text().splitlines())
    return dict(row)


def test_a_trace_hits_as_an_ideal_cache_would(tmp_path: Path) -> None:
    row = replay(a_trace(tmp_path / "t.jsonl"))
    # 8 share the first block; of every three that share the second one too, the first computes it.
    assert row["cached_tokens"] == 8 * 64 + 6 * 64
    assert row["fidelity"]["prompts"]["num_exact"] == row["fidelity"]["outputs"]["num_exact"] == 9
    assert row["fidelity"]["sharing"]["sent"] == row["fidelity"]["sharing"]["recorded"]


IN_ORDER = ["--no-fixed-schedule", "--max-concurrency", "1"]


@pytest.mark.parametrize("page_size", [1, 16])
def test_a_trace_replayed_in_its_order_alone_hits_as_expected_through_every_api(
    tmp_path: Path, page_size: int
) -> None:
    trace = a_trace(tmp_path / "t.jsonl", prompt_tokens=240)
    with embedded_server(["--page-size", str(page_size)]) as url:
        for backend in ("sglang", "openai", "openai-chat"):
            words = ["--base-url", url, "--backend", backend, "--tokenizer", "byte", "--page-size"]
            row = replay(trace, *IN_ORDER, *words, str(page_size))
            found = row["fidelity"]
            assert found["prompts"]["num_exact"] == found["sharing"]["num_exact"] == 9, backend
            assert found["timing"] is None
            # On chat the first request finds what the proof of the cold start left: the template's head.
            template = found["sharing"]["num_template_tokens"] // page_size * page_size
            assert row["cached_tokens"] == row["expected_cached_tokens"] == 8 * 64 + 6 * 64 + template
            trace.with_suffix(".out").unlink()


@contextmanager
def running_benchmark() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`bench warm-cache` in a process of its own, and the URL of its engine once that is ready."""
    words = [sys.executable, "-m", "prefixlab.cli.main", "bench", "warm-cache", *SMALL[:-1], "50"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = next(line for line in process.stderr if line.startswith("ready at "))
        yield process, line.removeprefix("ready at ").strip()
    finally:
        process.kill()
        process.communicate()


def children() -> set[int]:
    """Processes this one has started."""
    return {
        int(pid) for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()
    }


def gone(url: str) -> bool:
    """Whether nobody answers at `url` any more, within a minute."""
    clock = MonotonicClock()
    deadline_s = clock.now() + 60
    while clock.now() < deadline_s:
        try:
            httpx.get(f"{url}/health", trust_env=False)
        except httpx.TransportError:
            return True
        sleep(0.1)
    return False


def test_ctrl_c_shows_what_was_measured_and_ends_the_engine_too() -> None:
    with running_benchmark() as (process, url):
        assert process.stderr is not None
        next(line for line in process.stderr if "0 % shared, repeat 1" in line)
        process.send_signal(signal.SIGINT)
        shown, said = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "Shared prefix (%):                       0\n" in shown
        assert "ended early" in said and "interrupted" in said
        assert gone(url)


@pytest.mark.skipif(sys.platform != "linux", reason="finds the engine's process through /proc")
def test_an_engine_that_dies_under_the_benchmark_is_told_apart_from_a_bad_answer() -> None:
    before = children()
    died = pytest.raises(EngineError, match="the embedded engine ended with code -9")
    with died, embedded_server([]) as url:
        (engine,) = children() - before
        os.kill(engine, signal.SIGKILL)
        assert gone(url)
        raise TargetError("could not connect")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_the_engine_does_not_outlive_a_benchmark_that_is_killed() -> None:
    with running_benchmark() as (process, url):
        os.kill(process.pid, signal.SIGKILL)
        assert gone(url)
