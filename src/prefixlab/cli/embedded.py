"""The embedded engine: `prefixlab serve` as a child process, for as long as a benchmark runs.

Owns the child: a free port, its log, its end. A process of its own, because a load generator in the same
interpreter would wait for the engine's lock and report its own waiting.

Invariant: the child does not outlive the `with` block, nor, on Linux, this process.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from prefixlab.core.clock import MonotonicClock, sleep
from prefixlab.core.config import add_flags
from prefixlab.core.errors import ConfigError, EngineError, TargetError

START_TIMEOUT_S = 600.0
STOP_TIMEOUT_S = 15.0
LOG_LINES_SHOWN = 20
PR_SET_PDEATHSIG = 1


def engine_configs() -> tuple[type, ...]:
    from prefixlab.cli.engines import ENGINE_CONFIGS

    return ENGINE_CONFIGS


def add_engine_flags(parser: argparse.ArgumentParser, *bench_configs: type) -> None:
    """Offer the engine's settings, but for those a benchmark's own flag of the same name speaks for."""
    taken = {field.name for config in bench_configs for field in dataclasses.fields(config)}
    for config in engine_configs():
        title = f"embedded engine: {config.__name__.removesuffix('Config').lower()}"
        add_flags(parser, config, title, skip=taken)


def engine_words(given: Mapping[str, Any], *bench_configs: type) -> list[str]:
    """The engine's settings among `given`, spelt as flags again."""
    taken = {field.name for config in bench_configs for field in dataclasses.fields(config)}
    words: list[str] = []
    for config in engine_configs():
        for field in dataclasses.fields(config):
            if field.name in given and field.name not in taken:
                words += flag_words(field.name, given[field.name])
    return words


def flag_words(name: str, value: Any) -> list[str]:
    option = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{option}" if value else f"--no-{option}"]
    values = value if isinstance(value, (list, tuple)) else [value]
    return [f"--{option}", *map(str, values)]


@contextmanager
def embedded_server(words: Sequence[str]) -> Iterator[str]:
    """Run `prefixlab serve` with `words` on a free port; yields its URL once it takes requests.

    Raises:
        ConfigError: it refused its settings, or is not installed.
        EngineError: it did not come up, or did not stay up; the message ends with what it said last.
    """
    _check_is_installed(words)
    with tempfile.TemporaryDirectory(prefix="prefixlab-") as folder:
        log, ready = Path(folder, "log"), Path(folder, "ready.json")
        command = [sys.executable, "-m", "prefixlab.cli.main", "serve", *words]
        command += ["--host", "127.0.0.1", "--port", "0", "--ready-file", str(ready)]
        with log.open("wb") as output:
            # A session of its own: Ctrl-C is for us, and we end the child in order.
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )
        try:
            yield _wait_until_ready(process, ready, log)
        except TargetError as error:
            if process.poll() is not None:
                raise _ended(process, log) from error
            raise
        finally:
            _stop(process)


def _check_is_installed(words: Sequence[str]) -> None:
    from prefixlab.simulator.config import SIM

    named = words[words.index("--model") + 1] if "--model" in words else os.environ.get("PREFIXLAB_MODEL")
    if named != SIM and find_spec("torch") is None:
        raise ConfigError(
            "the embedded engine is not installed: pip install 'prefixlab[engine]', "
            f"name a server to measure with --base-url, or simulate one with --model {SIM}"
        )


def _wait_until_ready(process: subprocess.Popen[bytes], ready: Path, log: Path) -> str:
    clock = MonotonicClock()
    deadline_s = clock.now() + START_TIMEOUT_S
    while clock.now() < deadline_s:
        code = process.poll()
        if code is not None:
            if code == 2:
                raise ConfigError(f"the embedded engine refused its settings:\n{_last_words(log)}")
            raise _ended(process, log)
        if ready.exists() and (text := ready.read_text()):
            return str(json.loads(text)["url"])
        sleep(0.05)
    raise EngineError(f"the embedded engine was not ready after {START_TIMEOUT_S:.0f} s:\n{_last_words(log)}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _ended(process: subprocess.Popen[bytes], log: Path) -> EngineError:
    return EngineError(f"the embedded engine ended with code {process.returncode}:\n{_last_words(log)}")


def _last_words(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:])


def _die_with_parent() -> None:
    """Runs in the child before exec: the kernel ends it when this process ends, however that happens."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
