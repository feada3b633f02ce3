"""The real process: `prefixlab serve`, from its ready line to SIGTERM. And what it refuses before that."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import httpx
import pytest

from prefixlab.cache.config import CacheConfig
from prefixlab.cli.serve import configure
from prefixlab.core.clock import sleep
from prefixlab.core.errors import ConfigError
from prefixlab.engine.config import EngineConfig
from prefixlab.scheduler.config import SchedulerConfig
from prefixlab.server.config import READY_PREFIX, ServerConfig
from prefixlab.server.launch import _bind
from prefixlab.simulator.config import SimConfig
from tests.server.openai_client import check_async_client, check_sync_client

START_TIMEOUT_S = 120.0
LONG = {"input_ids": [1, 2, 3], "sampling_params": {"max_new_tokens": 300, "ignore_eos": True}}


@contextlib.contextmanager
def process(*flags: str, stderr: IO[str] | None = None) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server of its own, and its URL."""
    command = [
        sys.executable,
        "-m",
        "prefixlab.cli.main",
        "serve",
        "--port",
        "0",
        "--num-pages",
        "200",
        *flags,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment
    ) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            assert line.startswith(READY_PREFIX), line
            yield server, line.removeprefix(READY_PREFIX).strip()
        finally:
            server.kill()


def wait_until_running(url: str, num_running: int) -> None:
    for _ in range(1000):
        if httpx.get(f"{url}/server_info").json()["num_running"] == num_running:
            return
        sleep(0.01)
    raise AssertionError("the request does not run")


@pytest.mark.service
def test_the_official_client_works_unchanged_against_the_process(tmp_path: Path) -> None:
    ready_file = tmp_path / "ready.json"
    with process("--ready-file", str(ready_file)) as (server, url):
        ready = json.loads(ready_file.read_text())
        assert (ready["url"], ready["pid"]) == (url, server.pid)
        check_sync_client(url, "tiny")
        asyncio.run(check_async_client(url, "tiny"))
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0


@pytest.mark.service
def test_sigterm_lets_running_requests_finish_and_turns_new_ones_away() -> None:
    with process() as (server, url), ThreadPoolExecutor(2) as pool:
        running = pool.submit(httpx.post, f"{url}/generate", json=LONG, timeout=60)
        wait_until_running(url, 1)
        server.send_signal(signal.SIGTERM)
        while httpx.get(f"{url}/health").status_code == 200:
            assert not running.done(), "the signal was not heeded"
        refused = httpx.post(f"{url}/generate", json=LONG)
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["code"] == "shutting_down"
        assert len(running.result().json()["output_ids"]) == 300
        assert server.wait(30) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health")


@pytest.mark.service
def test_what_does_not_finish_in_time_is_told_and_the_process_ends() -> None:
    with process("--drain-timeout-s", "0") as (server, url), ThreadPoolExecutor(2) as pool:
        running = pool.submit(httpx.post, f"{url}/generate", json=LONG, timeout=60)
        wait_until_running(url, 1)
        server.send_signal(signal.SIGTERM)
        assert running.result().status_code == 503
        assert server.wait(30) == 0


@pytest.mark.service
def test_the_first_signal_says_what_it_waits_for_and_a_second_one_ends_it_at_once(tmp_path: Path) -> None:
    """Both in the middle of a stream, and without a traceback."""
    slow = ["--model", "sim", "--sim-step-ms", "100"]
    said = tmp_path / "said"
    with (
        said.open("w") as stderr,
        process(*slow, stderr=stderr) as (server, url),
        httpx.stream("POST", f"{url}/generate", json=LONG | {"stream": True}, timeout=60) as response,
    ):
        lines = response.iter_lines()  # kept, since a generator let go of closes the connection
        next(lines)
        server.send_signal(signal.SIGINT)
        while "stopping: no new requests; 1 under way get 30 s to finish" not in said.read_text():
            assert server.poll() is None, said.read_text()
            sleep(0.02)
        server.send_signal(signal.SIGINT)
        assert server.wait(30) == 128 + signal.SIGINT
    assert said.read_text().rstrip().endswith("a second signal: stopping at once")
    assert "Traceback" not in said.read_text()


@pytest.mark.service
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--kv-events-config", '{"publisher": "zmq", "topik": ""}'], "topik"),
        (["--host", "nowhere.invalid"], "--host"),
        (["--force-miss", "--cache", "none"], "--force-miss"),
        (["--page-sice", "16"], "--page-size"),
        (["--model", "no-such-model"], "no-such-model"),
        (["--sim-step-ms", "5"], "--sim-step-ms needs --model sim"),
        (["--model", "sim", "--dtype", "float32"], "--dtype"),
        (["--model", "sim", "--sim-profile", "no-such-file"], "no-such-file"),
    ],
)
def test_a_setting_that_cannot_be_used_ends_the_start_and_is_named(flags: list[str], said: str) -> None:
    command = [
        sys.executable,
        "-m",
        "prefixlab.cli.main",
        "serve",
        "--port",
        "0",
        "--num-pages",
        "50",
        *flags,
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=START_TIMEOUT_S, check=False)
    assert result.returncode in (1, 2)
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_a_taken_port_is_a_config_error_that_names_it() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port {port}"):
            _bind("127.0.0.1", port)


@pytest.mark.parametrize(
    "wrong", [{"port": -1}, {"port": 70000}, {"max_body_bytes": 0}, {"drain_timeout_s": -1.0}]
)
def test_a_server_setting_out_of_range_is_refused_by_its_flag(wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(ConfigError, match="--" + name.replace("_", "-")):
        ServerConfig(**wrong)  # type: ignore[arg-type]


def test_the_verb_has_one_flag_per_setting_of_its_configs() -> None:
    parser = argparse.ArgumentParser()
    configure(parser)  # a name that two configs had would raise here
    flags = {option for action in parser._actions for option in action.option_strings}
    for config in (EngineConfig, CacheConfig, SchedulerConfig, ServerConfig, SimConfig):
        for field in dataclasses.fields(config):
            assert "--" + field.name.replace("_", "-") in flags
    assert (ServerConfig().host, ServerConfig().port) == ("127.0.0.1", 30000)
