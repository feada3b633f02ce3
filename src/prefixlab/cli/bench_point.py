"""What `bench serve` and `bench sweep` share: from the words of a command line to settings and an endpoint.

Owns how users of other clients are understood: their names of backends, their default ports, their switches.
The runs themselves are in `prefixlab.bench.runs`.

Invariant: after `point_config` nothing depends on the command line any more.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import math
import os
import sys
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefixlab.core.errors import ConfigError

if TYPE_CHECKING:
    from prefixlab.bench.config.serve import ServeConfig
    from prefixlab.bench.metrics.point import PointResult
    from prefixlab.bench.runs.point import Outline
    from prefixlab.bench.runs.serve import Watcher
    from prefixlab.bench.targets.endpoint import Endpoint
    from prefixlab.cli.main import Parser
    from prefixlab.core.seams import Tokenizer

SECRETS = ("api_key", "admin_api_key", "header")
TOLD = ("progress", "style", "strict")
"""What changes nothing of what is sent, and so may be given anew where a run goes on."""


def add_point_flags(parser: Parser, *, listed: bool = False, skip: Container[str] = ()) -> None:
    """All options of a point.

    Args:
        listed: numbers and names that make a point take several values, with commas between.
    """
    from prefixlab.bench.config.report import ReportConfig
    from prefixlab.bench.config.serve import PARTS, SWEEPABLE
    from prefixlab.bench.config.target import BACKENDS, TargetConfig
    from prefixlab.cli import peer_flags
    from prefixlab.cli.embedded import add_engine_flags
    from prefixlab.core.config import add_flags

    parser.why_refused = peer_flags.why_refused
    others = ", ".join(peer_flags.BACKENDS)
    parser.add_argument(
        "--backend",
        default=argparse.SUPPRESS,
        metavar="BACKEND",
        help=f"the server's kind: {', '.join(BACKENDS)} (default: as the server shows itself); also {others}",
    )
    titles = {
        "target": "server to measure",
        "request": "requests",
        "dataset": "prompts",
        "prefix_repetition": "prompts of --dataset-name prefix_repetition",
        "gsp": "prompts of --dataset-name generated-shared-prefix",
        "shared_prefix": "prompts of --dataset-name shared-prefix",
        "hit_rate": "prompts of --dataset-name hit-rate",
        "sessions": "prompts of --dataset-name sessions",
        "sharegpt": "prompts of --dataset-name sharegpt or openai",
        "prefix_ratio": "prompts of --dataset-name prefix-ratio",
        "trace": "replay of a trace",
        "sampling": "sampling",
        "load": "load",
        "report": "results",
    }
    for name, part in PARTS.items():
        hidden = {"backend", "disable_ignore_eos"} if part is TargetConfig else set()
        hidden |= {field.name for field in dataclasses.fields(part) if field.name in skip}
        hidden |= {"strict"} if part is ReportConfig else set()
        add_flags(
            parser,
            part,
            titles.get(name) or f"prompts of --dataset-name {', '.join(part.DATASETS)}",
            skip=hidden,
            listed=SWEEPABLE if listed else (),
        )
    peer_flags.add_peer_flags(parser)
    add_engine_flags(parser, *PARTS.values())


def add_strict_flag(parser: Parser) -> None:
    """Of verbs that end with `check_strictly`."""
    from prefixlab.bench.config.report import ReportConfig
    from prefixlab.core.config import add_flags

    others = {field.name for field in dataclasses.fields(ReportConfig)} - {"strict"}
    add_flags(parser, ReportConfig, "verdict", skip=others)


def check_strictly(config: ServeConfig, results: Mapping[str, PointResult]) -> None:
    """Raises GateError where --strict was given and a request failed, or its cache did not serve what an
    ideal one would have: a verdict on a part of them is none on the rest. `results`: by name of the point."""
    from prefixlab.bench.report.console import counted
    from prefixlab.core.errors import GateError

    if not config.report.strict:
        return
    wrong = []
    for name, result in results.items():
        verdict, metrics = result.ledger or result.check, result.metrics
        whole = result.check.num_checked == result.check.num_finished
        if verdict.is_consistent and whole and not metrics.failed:
            continue
        failed = f"{metrics.failed} of {counted(metrics.planned, 'request')} failed"
        wrong.append(f"{name}: cached tokens {verdict.words}, {failed}")
    if wrong:
        raise GateError("--strict: " + "; ".join(wrong))


def options_of_others(dataset_name: str) -> set[str]:
    """Options of a point that would be refused with this data set."""
    from prefixlab.bench.config.dataset import OPTIONS_OF
    from prefixlab.bench.config.serve import WORKLOADS

    others = (part for part in WORKLOADS.values() if dataset_name not in part.DATASETS)
    skipped = {field.name for part in others for field in dataclasses.fields(part)}
    return skipped | {name for name, datasets in OPTIONS_OF.items() if dataset_name not in datasets}


def given_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The command line, in our words.

    Raises:
        ConfigError: a backend that is none.
    """
    from prefixlab.bench.config.dataset import OPTIONS_OF
    from prefixlab.bench.config.target import BACKENDS, DEFAULT_PORTS
    from prefixlab.cli import peer_flags
    from prefixlab.core.config import did_you_mean

    given = dict(vars(args))
    peer_flags.take_workload_name(given)
    word = given.get("backend")
    if word is not None:
        given["backend"] = peer_flags.BACKENDS.get(word, word)
        if given["backend"] not in BACKENDS:
            known = [*BACKENDS, *peer_flags.BACKENDS]
            raise ConfigError(f"--backend {word}: there is {', '.join(BACKENDS)}{did_you_mean(word, known)}")
        if word.startswith("sglang") and given.get("dataset_name") in (None, *OPTIONS_OF["range_ratio_of"]):
            given.setdefault("range_ratio_of", "sglang")
    if "tokenizer" not in given and _has_tokenizer(given.get("model")):
        given["tokenizer"] = given["model"]  # as vLLM's and SGLang's clients take it
    if given.get("served_model_name") is not None:
        given["model"] = given["served_model_name"]
    if "url" in given:
        name_servers(given)
    port = DEFAULT_PORTS.get(given.get("backend", ""))
    if port is not None and "base_url" not in given:
        given.setdefault("port", port)
    return given


def name_servers(given: dict[str, Any]) -> None:
    """--url as --base-url, and what there is besides. ConfigError if servers are named otherwise too."""
    urls = [url.rstrip("/") for url in given["url"]]
    if also := [name for name in ("base_url", "host", "port") if name in given]:
        raise ConfigError(f"--url names the servers already: leave out --{also[0].replace('_', '-')}")
    if len(set(urls)) < len(urls):
        raise ConfigError(f"--url names a server twice: {' '.join(urls)}")
    given["base_url"] = urls[0]
    given["url"] = urls if len(urls) > 1 else []


def _has_tokenizer(model: str | None) -> bool:
    """Whether it is a folder with a tokenizer that can be read here."""
    readable = importlib.util.find_spec("tokenizers") is not None
    return readable and model is not None and (Path(model) / "tokenizer.json").is_file()


def point_config(given: Mapping[str, Any]) -> ServeConfig:
    """Settings as resolved. ConfigError names the flag that is wrong."""
    from prefixlab.bench.config.serve import PARTS, ServeConfig
    from prefixlab.cli.bench_target import target_config
    from prefixlab.cli.embedded import engine_configs

    taken = {field.name for part in PARTS.values() for field in dataclasses.fields(part)}
    engine = {
        field.name: given[field.name]
        for config in engine_configs()
        for field in dataclasses.fields(config)
        if field.name in given and field.name not in taken
    }
    return ServeConfig.resolve(target_config(argparse.Namespace(**given)), given, engine)


def refuse_settings(args: argparse.Namespace) -> None:
    """Raises ConfigError if something is set beside --resume that it would ignore."""
    other = [name for name in vars(args) if name not in (*SECRETS, "resume", *TOLD)]
    if other:
        flags = ", ".join("--" + name.replace("_", "-") for name in other)
        raise ConfigError(f"--resume takes all settings from the run's config.json: leave out {flags}")


def restored_config(data: Mapping[str, Any], args: argparse.Namespace) -> ServeConfig:
    """Settings as a run directory has them; secrets from the command line or the environment.

    Raises:
        ConfigError: there are other settings on the command line, which would be ignored.
    """
    from prefixlab.bench.config.serve import ServeConfig

    refuse_settings(args)
    given = vars(args)
    keys = {
        "PREFIXLAB_API_KEY": os.environ.get("PREFIXLAB_API_KEY", os.environ.get("OPENAI_API_KEY")),
        "PREFIXLAB_ADMIN_API_KEY": os.environ.get("PREFIXLAB_ADMIN_API_KEY"),
    }
    config = ServeConfig.restore(
        data, given, {name: value for name, value in keys.items() if value is not None}
    )
    told = {name: given[name] for name in TOLD if name in given}
    return dataclasses.replace(config, report=dataclasses.replace(config.report, **told))


@contextmanager
def open_point_endpoint(config: ServeConfig, *, told: bool = True) -> Iterator[Endpoint]:
    """What the settings say to measure, ready, for as long as the block.

    Args:
        told: say on stderr what a server was found to be.

    Raises:
        ConfigError: the server does not serve that model, or contradicts the settings otherwise.
        TargetError: it cannot be reached, or was not ready in time.
    """
    from prefixlab.bench.config.serve import PARTS
    from prefixlab.bench.targets.detect import check_model, detect_backend, find_port
    from prefixlab.bench.targets.endpoint import wait_until_ready
    from prefixlab.cli.bench_target import endpoint_under_test
    from prefixlab.core.clock import MonotonicClock

    if len(config.request.url) > 1:
        with _several_endpoints(config, told=told) as endpoint:
            yield endpoint
        return
    target = config.target
    if not target.is_embedded:
        if target.backend is None and target.base_url is None and target.port is None:
            target = dataclasses.replace(target, port=find_port(target))
        timeout_s = config.request.ready_check_timeout_sec
        if timeout_s:
            wait_until_ready(target, target.url, timeout_s, MonotonicClock())
        backend = target.backend or detect_backend(target, target.url)
        model = target.model if config.request.served_model_name is None else None
        if model is not None and backend not in ("sglang", "prefixlab"):
            check_model(target, target.url, model)
    else:
        backend = target.backend or "prefixlab"
    is_found = target.backend is None and not target.is_embedded
    target = dataclasses.replace(target, backend=backend, disable_ignore_eos=not config.ignores_eos(backend))
    shared = {
        name: value
        for name in ("model", "tokenizer", "page_size")
        if (value := getattr(target, name)) is not None
    }
    args = argparse.Namespace(**config.engine, **shared)
    with endpoint_under_test(target, args, *PARTS.values()) as endpoint:
        is_ours = endpoint.facts.backend == "prefixlab" and backend == "sglang"
        if is_ours:  # which speaks SGLang's API, and is recorded as what it is
            endpoint = dataclasses.replace(endpoint, backend="prefixlab")
        if told and (is_ours or is_found):
            what = "is a prefixlab server" if is_ours else f"is asked as --backend {backend}"
            print(f"{target.url} {what}", file=sys.stderr)
        yield endpoint


@contextmanager
def _several_endpoints(config: ServeConfig, *, told: bool) -> Iterator[Endpoint]:
    from prefixlab.bench.targets.several import SeveralEndpoints

    with ExitStack() as resources:
        each = []
        for url in config.request.url:
            one = dataclasses.replace(
                config,
                target=dataclasses.replace(config.target, base_url=url),
                request=dataclasses.replace(config.request, url=()),
            )
            each.append(resources.enter_context(open_point_endpoint(one, told=told)))
        yield SeveralEndpoints.of(each)


def planned_outline(config: ServeConfig) -> Outline:
    """What a run would send; texts of files are counted with --tokenizer."""
    from prefixlab.bench.runs.making import COUNTING_MAKERS
    from prefixlab.bench.runs.point import outline
    from prefixlab.cli.bench_target import load_tokenizer

    name = config.target.tokenizer
    counts = name is not None and config.dataset.dataset_name in COUNTING_MAKERS
    return outline(config, tokenizer=load_tokenizer(name, None) if name is not None and counts else None)


def point_tokenizer(config: ServeConfig, endpoint: Endpoint) -> Tokenizer | None:
    """Where text is counted or made by us."""
    from prefixlab.cli.bench_target import tokenizer_maker

    dataset = config.dataset
    if dataset.dataset_name == "random" and dataset.prompt_form != "text":
        return None
    return tokenizer_maker(config.target)(endpoint.facts)


@contextmanager
def watching(configs: Sequence[ServeConfig]) -> Iterator[Watcher]:
    """Progress over the runs of `configs`, where it is wanted."""
    from prefixlab.bench.report.progress import ProgressBar
    from prefixlab.bench.runs.point import tokens_of
    from prefixlab.bench.runs.serve import Unwatched

    if not configs[0].report.progress:
        yield Unwatched()
        return
    planned = [(config.load.repeats, planned_outline(config)) for config in configs]
    num_requests = sum(repeats * point.num_requests for repeats, point in planned)
    num_tokens = sum(repeats * tokens_of(point)[1] for repeats, point in planned)
    with ProgressBar(num_requests, num_tokens) as bar:
        yield bar


def describe_point(config: ServeConfig) -> str:
    """What would be sent, in one line."""
    from prefixlab.bench.report.console import counted
    from prefixlab.bench.runs.point import tokens_of
    from prefixlab.bench.runs.sessions import has_sessions, num_arriving

    planned = planned_outline(config)
    prompt, output = tokens_of(planned)
    tokens = "prompts as long as they are" if prompt is None else counted(prompt, "prompt token")
    repeats = f"{config.load.repeats} times " if config.load.repeats > 1 else ""
    arriving = f" over {planned.last_arrival_s:,.1f} s" if planned.last_arrival_s else ""
    limit = "" if config.load.duration is None else f", nothing after {config.load.duration:g} s"
    sketches = planned.workload.sketches
    sessions = f" of {counted(num_arriving(planned.workload), 'session')}" if has_sessions(sketches) else ""
    pace = config.load.describe(config.arrivals())
    return (
        f"{repeats}{counted(planned.num_requests, 'request')}{sessions}{arriving}, {pace}{limit}; "
        f"{tokens}, {counted(output, 'output token')}"
    )


def arrival_seconds(config: ServeConfig) -> float:
    """How long a point takes at least, as far as arrivals say."""
    last_s = planned_outline(config).last_arrival_s
    return config.load.repeats * min(last_s, config.load.duration or math.inf)
