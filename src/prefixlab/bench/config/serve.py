"""Settings of `bench serve`, all of one run together, and their form in a run directory.

Owns how settings are written down and read back. The settings themselves are in the files beside.

Invariant: `ServeConfig.restore(config.stored())` is the same settings, secrets apart, which are not stored.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from prefixlab.bench.config.dataset import (
    LENGTH_DATASETS,
    TRACE_DATASETS,
    WARM_UP_OPTIONS,
    DatasetConfig,
    RandomLengthsConfig,
    SamplingConfig,
    ShareGptConfig,
)
from prefixlab.bench.config.load import LoadConfig
from prefixlab.bench.config.prefix_ratio import PrefixRatioConfig
from prefixlab.bench.config.report import ReportConfig
from prefixlab.bench.config.sessions import SessionsConfig
from prefixlab.bench.config.sharing import (
    GspConfig,
    HitRateConfig,
    PrefixRepetitionConfig,
    SharedPrefixConfig,
)
from prefixlab.bench.config.target import IN_PROCESS, TargetConfig
from prefixlab.bench.config.trace import TraceConfig
from prefixlab.core.config import MASK, as_public_dict, resolve, setting
from prefixlab.core.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class RequestConfig:
    """What else is said of the requests and the server."""

    served_model_name: str | None = setting(
        None, "model to name in requests, where that is not what --model says"
    )
    ignore_eos: bool | None = setting(
        None,
        "let no output end before its length (default: on with the APIs of SGLang and prefixlab, off with "
        "those of vLLM and OpenAI, as their clients have it)",
    )
    request_id_prefix: str = setting("", "put before the ids of requests in records")
    url: tuple[str, ...] = setting(
        (),
        "server to measure, as --base-url; with --dataset-name prefix-ratio several, asked at the same time, "
        "which share the requests",
        metavar="URL",
    )
    ready_check_timeout_sec: float = setting(
        0.0, "wait so long for the server to be ready; it is sent no prompt", metavar="SECONDS"
    )

    def __post_init__(self) -> None:
        if not 0 <= self.ready_check_timeout_sec < math.inf:
            raise ConfigError(
                f"--ready-check-timeout-sec must not be negative, not {self.ready_check_timeout_sec}"
            )


@dataclass(frozen=True)
class ServeConfig:
    """One run, as resolved.

    Attributes:
        engine: settings of the embedded engine, as given.
        prompts_key: `key()` of another point, where the same prompts are to be sent; None: its own.
    """

    target: TargetConfig = field(default_factory=TargetConfig)
    request: RequestConfig = field(default_factory=RequestConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    prefix_repetition: PrefixRepetitionConfig = field(default_factory=PrefixRepetitionConfig)
    gsp: GspConfig = field(default_factory=GspConfig)
    shared_prefix: SharedPrefixConfig = field(default_factory=SharedPrefixConfig)
    hit_rate: HitRateConfig = field(default_factory=HitRateConfig)
    sessions: SessionsConfig = field(default_factory=SessionsConfig)
    trace: TraceConfig = field(default_factory=TraceConfig)
    random_lengths: RandomLengthsConfig = field(default_factory=RandomLengthsConfig)
    sharegpt: ShareGptConfig = field(default_factory=ShareGptConfig)
    prefix_ratio: PrefixRatioConfig = field(default_factory=PrefixRatioConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    load: LoadConfig = field(default_factory=LoadConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    engine: dict[str, Any] = field(default_factory=dict)
    prompts_key: int | None = None

    def __post_init__(self) -> None:
        if self.target.is_in_process and self.request.ready_check_timeout_sec:
            raise ConfigError(f"--ready-check-timeout-sec is for a server behind HTTP, not {IN_PROCESS}")
        if len(self.request.url) > 1 and self.dataset.dataset_name not in PrefixRatioConfig.DATASETS:
            raise ConfigError("--url is one server, but with --dataset-name prefix-ratio")
        self._check_unused()
        self._decide_schedule()

    def _decide_schedule(self) -> None:
        """A trace is replayed at its own times unless something else says when."""
        fixed, name = self.load.fixed_schedule, self.dataset.dataset_name
        if name in TRACE_DATASETS:
            if fixed is None:
                load = dataclasses.replace(self.load, fixed_schedule=not self.load.has_times)
                object.__setattr__(self, "load", load)
            if self.trace.factor != 1 and not self.load.fixed_schedule:
                flag = "--speedup" if self.trace.time_scale is None else "--time-scale"
                raise ConfigError(
                    f"{flag} changes the times of the trace, which are not used: {self.load.describe()}"
                )
        elif fixed is not None and name != "saved":
            raise ConfigError(f"--{'' if fixed else 'no-'}fixed-schedule is for traces, not {name}")

    def _check_unused(self) -> None:
        """What only other data sets take is refused, not passed over."""
        name = self.dataset.dataset_name
        for part in (getattr(self, part) for part in WORKLOADS):
            for option in dataclasses.fields(part):
                if name not in part.DATASETS and getattr(part, option.name) != option.default:
                    others = " or ".join(part.DATASETS)
                    flag = f"--{option.name.replace('_', '-')}"
                    raise ConfigError(f"{flag} is for --dataset-name {others}, not {name}")
        for option in dataclasses.fields(self.dataset):
            given = option.name in WARM_UP_OPTIONS and getattr(self.dataset, option.name) != option.default
            if given and name not in LENGTH_DATASETS and not self.load.num_warmups:
                flag = f"--{option.name.replace('_', '-')}"
                raise ConfigError(
                    f"{flag} is for --dataset-name {' or '.join(LENGTH_DATASETS)}, not {name}: its requests "
                    f"have lengths of their own{self._own_lengths(option.name)}, and without --num-warmups "
                    "there are no others"
                )
        if name in SessionsConfig.DATASETS:
            self.sessions.check(self.trace, has_file=self.dataset.dataset_path is not None)

    def _own_lengths(self, warm_up_option: str) -> str:
        """The flags that say how long the data set's prompts, or outputs, are; empty where none does."""
        of_outputs = "output" in warm_up_option
        flags = [
            f"--{option.name.replace('_', '-')}"
            for part in (getattr(self, part) for part in WORKLOADS)
            if self.dataset.dataset_name in part.DATASETS
            for option in dataclasses.fields(part)
            if option.name.endswith("_len") and ("output" in option.name) == of_outputs
        ]
        return f" ({', '.join(flags)})" if flags else ""

    @classmethod
    def resolve(
        cls, target: TargetConfig, given: Mapping[str, Any], engine: Mapping[str, Any]
    ) -> ServeConfig:
        """From flags; of the environment only what is in `target` already.

        Raises:
            ConfigError: an option cannot be used; it names the flag.
        """
        parts = {name: resolve(part, given, {}) for name, part in PARTS.items() if name != "target"}
        return cls(target=target, **parts, engine=dict(engine))

    def ignores_eos(self, backend: str) -> bool:
        """Whether outputs go to their full length on `backend`."""
        if self.request.ignore_eos is not None:
            return self.request.ignore_eos
        return backend not in ("vllm", "openai", "openai-chat")

    def arrivals(self) -> str:
        """In words: when requests come. Nothing in closed loop."""
        words = self.load.arrivals()
        if not self.load.fixed_schedule or self.trace.factor == 1:
            return words
        scale = self.trace.time_scale
        speed = f"speedup {self.trace.speedup:g}" if scale is None else f"time scale {scale:g}"
        return f"{words}, {speed}"

    @property
    def as_sglang(self) -> bool:
        """Whether a range ratio is meant as SGLang's client means it."""
        return (self.dataset.range_ratio_of or self.target.backend) == "sglang"

    def key(self) -> int:
        """What prompts and arrivals depend on besides the seed: this point's own settings, and nothing that
        other points, files or the way of measuring decide."""
        if self.prompts_key is not None:
            return self.prompts_key
        dataset = {**stored(self.dataset), "num_prompts": None}
        load = {
            name: value
            for name, value in stored(self.load).items()
            if name not in ("retries", "repeats", "num_warmups", "flush_cache", "duration")
        }
        parts = {
            name: stored(getattr(self, name))
            for name, part in WORKLOADS.items()
            if self.dataset.dataset_name in part.DATASETS
        }
        text = msgspec.json.encode([dataset, load, parts], order="sorted")
        return int.from_bytes(hashlib.sha256(text).digest()[:8])

    def stored(self) -> dict[str, Any]:
        """As plain JSON data, secrets masked."""
        parts = {name: stored(getattr(self, name)) for name in PARTS} | {"engine": self.engine}
        return parts if self.prompts_key is None else parts | {"prompts_key": self.prompts_key}

    @classmethod
    def restore(
        cls, data: Mapping[str, Any], given: Mapping[str, Any], environ: Mapping[str, str]
    ) -> ServeConfig:
        """From what `stored` made, the secrets from flags or environment.

        Raises:
            ConfigError: a secret that the run had is not given, or the data is not ours.
        """
        try:
            parts = {name: _restore(part, data[name], given, environ) for name, part in PARTS.items()}
            return cls(**parts, engine=dict(data["engine"]), prompts_key=data.get("prompts_key"))
        except (KeyError, TypeError) as error:
            raise ConfigError(f"config.json is not one of this version: {error}") from None


WORKLOADS: dict[str, Any] = {
    "prefix_repetition": PrefixRepetitionConfig,
    "gsp": GspConfig,
    "shared_prefix": SharedPrefixConfig,
    "hit_rate": HitRateConfig,
    "sessions": SessionsConfig,
    "trace": TraceConfig,
    "random_lengths": RandomLengthsConfig,
    "sharegpt": ShareGptConfig,
    "prefix_ratio": PrefixRatioConfig,
}
"""Options of some data sets only: those in the class's DATASETS."""
PARTS: dict[str, Any] = {
    "target": TargetConfig,
    "request": RequestConfig,
    "dataset": DatasetConfig,
    **WORKLOADS,
    "sampling": SamplingConfig,
    "load": LoadConfig,
    "report": ReportConfig,
}


def _sweepable() -> frozenset[str]:
    """Options of a point that take one value each: numbers, names and files, no switches."""
    names = set()
    for part in (DatasetConfig, *WORKLOADS.values(), SamplingConfig, LoadConfig):
        hints = typing.get_type_hints(part)
        for option in dataclasses.fields(part):
            if not {bool, tuple[str, ...]} & {hints[option.name], *typing.get_args(hints[option.name])}:
                names.add(option.name)
    return frozenset(names - {"repeats", "num_warmups", "ignore_fields"})


SWEEPABLE = _sweepable()
"""What a sweep may give several values."""


def stored(config: Any) -> dict[str, Any]:
    """JSON has no infinity, so it is written as a word."""
    return {
        name: str(value) if isinstance(value, float) and math.isinf(value) else value
        for name, value in as_public_dict(config).items()
    }


def _restore(
    config_class: type[T], data: Mapping[str, Any], given: Mapping[str, Any], environ: Mapping[str, str]
) -> T:
    hints = typing.get_type_hints(config_class)
    values: dict[str, Any] = {}
    for option in dataclasses.fields(config_class):  # type: ignore[arg-type]
        if option.name not in data:
            continue
        value = data[option.name]
        if value == MASK and option.metadata.get("secret"):
            value = given.get(option.name, environ.get(f"PREFIXLAB_{option.name.upper()}"))
            if value is None:
                flag = "--" + option.name.replace("_", "-")
                raise ConfigError(f"the run had a {flag}, which is not written down: give it again")
        elif value in ("inf", "-inf") and hints[option.name] is not str:
            value = float(value)
        values[option.name] = tuple(value) if isinstance(value, list) else value
    return config_class(**values)
