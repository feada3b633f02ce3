"""Settings of `bench sweep`: which points, on which servers.

Owns how lists of values become points, and what servers and points may be called. A point's own settings are
`serve.py`'s.

Invariant: points come in the order the values were given, the last list changing fastest.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prefixlab.bench.config.sharing import SHARING_DATASETS
from prefixlab.core.config import Values, setting
from prefixlab.core.errors import ConfigError

DEFAULT_CONCURRENCIES = (1, 2, 5, 10, 50, 100, 250)
FEWEST_REQUESTS, REQUESTS_PER_SLOT = 10, 3

NAME = re.compile(r"[a-zA-Z0-9_-]+")
RESERVED_NAMES = frozenset({"plots"})
LOAD_OPTIONS = (
    *("max_concurrency", "request_rate", "ramp_up_strategy", "stage", "schedule"),
    *("fixed_schedule", "speedup", "time_scale"),
)


@dataclass(frozen=True)
class SweepConfig:
    """How a sweep is put together."""

    target: tuple[str, ...] = setting(
        (), "servers to measure at the same points, instead of --base-url", metavar="NAME=URL"
    )
    zip: bool = setting(False, "take the lists side by side, instead of every combination of their values")

    def targets(self) -> dict[str, str]:
        """Name → URL, in the order given; empty where none is."""
        found: dict[str, str] = {}
        for word in self.target:
            name, equals, url = word.partition("=")
            name = name.strip()
            if not equals or not NAME.fullmatch(name):
                raise ConfigError(
                    f"--target takes NAME=URL, the name in letters, digits, - and _, not {word!r}"
                )
            if name.lower() in RESERVED_NAMES:
                raise ConfigError(f"--target {name}: that name is taken, pictures go there")
            if not url.lower().startswith(("http://", "https://")):
                raise ConfigError(f"--target {name}: {url!r} does not start with http:// or https://")
            if name in found:
                raise ConfigError(f"--target names {name} twice")
            found[name] = url
        return found

    def points(self, given: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What each point sets, out of options that were given several values.

        Raises:
            ConfigError: lists to be taken side by side differ in length, or one holds a value twice.
        """
        axes = {name: value for name, value in given.items() if isinstance(value, Values) and len(value) > 1}
        if not any(name in given for name in LOAD_OPTIONS):
            axes["max_concurrency"] = Values(DEFAULT_CONCURRENCIES)
        for name, values in axes.items():
            if len(set(values)) < len(values) and not self.zip:
                raise ConfigError(f"{flag(name)} holds a value twice: {', '.join(map(str, values))}")
        if self.zip and len({len(values) for values in axes.values()}) > 1:
            sizes = ", ".join(f"{flag(name)} {len(values)}" for name, values in axes.items())
            raise ConfigError(f"--zip takes lists of the same length: {sizes}")
        rows = zip(*axes.values(), strict=True) if self.zip else itertools.product(*axes.values())
        return [dict(zip(axes, row, strict=True)) for row in rows]


def settings_of(given: Mapping[str, Any], point: Mapping[str, Any]) -> dict[str, Any]:
    """All options of one point: its own, and what all points have."""
    options: dict[str, Any] = {
        name: value[0] if isinstance(value, Values) else value for name, value in given.items()
    }
    options.update(point)
    concurrency = options.get("max_concurrency")
    decided = {"num_prompts", "duration", "stage", "schedule", "dataset_path"} & set(options)
    # How much these share depends on how many they are, which is theirs to say.
    decided |= {"sessions", *SHARING_DATASETS} & {options.get("dataset_name")}
    if concurrency is not None and not decided:
        options["num_prompts"] = max(REQUESTS_PER_SLOT * concurrency, FEWEST_REQUESTS)
    return options


def point_name(number: int, target: str | None, point: Mapping[str, Any]) -> str:
    """Of its folder: `003-east-max-concurrency=5`."""
    words = [f"{number:03}", *([target] if target else [])]
    words += [f"{name.replace('_', '-')}={value}" for name, value in point.items()]
    return re.sub(r"[^a-zA-Z0-9_.=-]+", "_", "-".join(words))


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def shown(target: str | None, point: Mapping[str, Any]) -> dict[str, Any]:
    """What a report says was swept."""
    named = {"target": target} if target else {}
    return named | {name.replace("_", "-"): value for name, value in point.items()}
