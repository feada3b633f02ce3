"""What every benchmark verb does first: decide whom to ask, and have it running.

Owns the step from flags to an endpoint: a server that is there already, the engine as a child behind HTTP, or
the engine in this process; its tokenizer, and keys from the environment. The benchmarks themselves are in
`prefixlab.bench`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from prefixlab.cli.embedded import embedded_server, engine_words, flag_words
from prefixlab.core.config import resolve
from prefixlab.core.errors import ConfigError

if TYPE_CHECKING:
    from prefixlab.bench.config.target import TargetConfig
    from prefixlab.bench.targets.control import ServerFacts
    from prefixlab.bench.targets.endpoint import Endpoint, MakeTokenizer
    from prefixlab.core.seams import Tokenizer

BYTE = "byte"
DEFAULT_MODEL = "tiny"


def target_config(args: argparse.Namespace) -> TargetConfig:
    """From flags. Of the environment only keys are read: PREFIXLAB_* variables are for the server."""
    from prefixlab.bench.config.target import IN_PROCESS, TargetConfig

    if getattr(args, "backend", None) == IN_PROCESS:  # nobody there to show a key to
        return resolve(TargetConfig, vars(args), {})
    keys = {
        name: os.environ[variable]
        for name, variable in (
            ("PREFIXLAB_API_KEY", "OPENAI_API_KEY"),
            ("PREFIXLAB_API_KEY", "PREFIXLAB_API_KEY"),
            ("PREFIXLAB_ADMIN_API_KEY", "PREFIXLAB_ADMIN_API_KEY"),
        )
        if variable in os.environ
    }
    headers = (given.partition("=")[0].lower() for given in getattr(args, "header", ()))
    if "authorization" in headers:  # said on the command line, it wins over a key of the environment
        keys.pop("PREFIXLAB_API_KEY", None)
    return resolve(TargetConfig, vars(args), keys)


@contextmanager
def endpoint_under_test(
    config: TargetConfig, args: argparse.Namespace, *bench_configs: type
) -> Iterator[Endpoint]:
    """Yield what `config` says to measure, running and ready, for as long as the block.

    Raises:
        ConfigError: settings of the engine where there is none to set, or that contradict the server.
        TargetError: the server cannot be reached.
    """
    from prefixlab.bench.targets.endpoint import open_endpoint

    if config.is_in_process:
        with _engine_in_process(config, args, *bench_configs) as endpoint:
            yield endpoint
        return

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    with (
        server_under_test(config, args, *bench_configs) as url,
        open_endpoint(config, url, tokenizer_maker(config), say=say) as endpoint,
    ):
        yield endpoint


@contextmanager
def _engine_in_process(
    config: TargetConfig, args: argparse.Namespace, *bench_configs: type
) -> Iterator[Endpoint]:
    from prefixlab.bench.targets.endpoint import open_in_process
    from prefixlab.cli.in_process import in_process_target
    from prefixlab.core.clock import MonotonicClock

    print("loading the engine into this process", file=sys.stderr)
    with in_process_target(args, *bench_configs) as target:
        yield open_in_process(
            config,
            target,
            MonotonicClock(),
            info=target.info,
            flush=target.flush,
            make_tokenizer=tokenizer_maker(config),
        )


@contextmanager
def server_under_test(config: TargetConfig, args: argparse.Namespace, *bench_configs: type) -> Iterator[str]:
    """Yield the URL to ask: a server that is there, or an embedded engine that lives as long as the block.

    Raises ConfigError for settings of the engine where there is none to set.
    """
    words = engine_words(vars(args), *bench_configs)
    if not config.is_embedded:
        if words:
            raise ConfigError(f"{words[0]} is for the embedded engine; {config.url} has its own settings")
        yield config.url
        return
    for name in ("model", "tokenizer", "page_size"):
        value = getattr(config, name)
        if value is not None:
            words += flag_words(name, value)
    print(f"starting the embedded engine: prefixlab serve {' '.join(words)}".rstrip(), file=sys.stderr)
    with embedded_server(words) as url:
        print(f"ready at {url}", file=sys.stderr)
        yield url


def tokenizer_maker(config: TargetConfig) -> MakeTokenizer:
    """What makes the tokenizer `config` names; the embedded engine's own, where text is needed."""
    name = config.tokenizer
    if name is None and config.is_embedded and config.backend == "openai-chat":
        name = config.model or DEFAULT_MODEL

    def make(facts: ServerFacts) -> Tokenizer | None:
        return None if name is None else load_tokenizer(name, facts.vocab_size)

    return make


@lru_cache(maxsize=4)
def load_tokenizer(name: str, vocab_size: int | None) -> Tokenizer:
    """`byte`, the name of a built-in model (which all use that), or a Hugging Face folder or hub id."""
    from prefixlab.core.text.byte_tokenizer import DEFAULT_VOCAB_SIZE, ByteTokenizer
    from prefixlab.engine.shapes import SHAPES
    from prefixlab.simulator.config import SIM

    if name in (BYTE, SIM) or name in SHAPES:
        return ByteTokenizer(vocab_size or DEFAULT_VOCAB_SIZE)
    try:
        from prefixlab.engine.hub import locate
        from prefixlab.engine.tokenizer import HFTokenizer
    except ModuleNotFoundError as error:
        raise ConfigError(f"--tokenizer {name} needs {error.name}: pip install 'prefixlab[engine]'") from None
    return HFTokenizer(locate(name, with_weights=False))


def check_can_write(flag: str, path: str | None, endings: tuple[str, ...] = ()) -> Path | None:
    """Find out before measuring. ConfigError if the folder is missing or the ending not one of ours."""
    if path is None:
        return None
    file = Path(path)
    if not file.parent.is_dir():
        raise ConfigError(f"{flag} {path}: there is no folder {file.parent}")
    if endings and file.suffix.lower() not in endings:
        raise ConfigError(f"{flag} {path}: the name must end in one of {', '.join(endings)}")
    return file
