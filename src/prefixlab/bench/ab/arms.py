"""The arms of an A/B: what each asks, of which server, and what it is there to show.

Owns the three arms that tell the worth of a cache apart, and making arms ask the same: as many requests in
each turn, of one seed and one key. Who sends them, and when, is `run.py`'s.

Arms that ask one server must not warm its cache for each other, so each has tokens of its own (a salt) in
prompts that are otherwise the same; arms of different servers send the very same prompts.

Invariant: request i of one arm and request i of another have the same lengths, unless their settings differ
in just that.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence
from dataclasses import dataclass

from prefixlab.bench.ab.config import AbConfig
from prefixlab.bench.config.prefix_ratio import PrefixRatioConfig
from prefixlab.bench.config.serve import ServeConfig
from prefixlab.bench.config.sharing import SHARING_DATASETS
from prefixlab.bench.targets.endpoint import Endpoint
from prefixlab.bench.workloads.variants import Variant
from prefixlab.core.errors import ConfigError

DATASETS = ("random", *SHARING_DATASETS, *PrefixRatioConfig.DATASETS)
"""Of prompts that are made up, and can be made anew for every round and arm."""
NOT_PREWARMED = ("hit-rate",)
"""Its rate is that of a cache which begins empty."""
FORCED = "every request is forced to miss"
_SALT_STEP = 1 << 40
"""Beyond the number of rounds, which is added to it."""


class Role(enum.Enum):
    """What an arm is there to show."""

    PLAIN = "as its settings say"
    HIT = "the cache serves what prompts share"
    MISS = "the cache is at work, and serves nothing"
    OFF = "there is no cache"


@dataclass(frozen=True)
class Arm:
    """See the module. `name` is also that of its folder."""

    name: str
    config: ServeConfig
    role: Role = Role.PLAIN


def worth_arms(config: ServeConfig, off_url: str | None) -> tuple[list[Arm], list[str]]:
    """hit, miss and, where there can be one, off; and what is to be said of them.

    Raises:
        ConfigError: the settings leave no cache to hit.
    """
    if config.target.expect_miss or config.engine.get("force_miss") or config.engine.get("cache") == "none":
        raise ConfigError("bench ab tells what hits are worth: leave out what lets every request miss")
    arms = [Arm("hit", config, Role.HIT), Arm("miss", config, Role.MISS)]
    if off_url is not None:
        target = dataclasses.replace(
            config.target, base_url=off_url.rstrip("/"), host=None, port=None, expect_miss=True, kv_events=()
        )
        off = dataclasses.replace(config, target=target, engine={})
    elif config.target.is_embedded:
        off = dataclasses.replace(config, engine={**config.engine, "cache": "none"})
    else:
        left_out = (
            "there is no arm off: --off-url names a server of the same model without a prefix cache, so that "
            "the price of the code path is known too"
        )
        return arms, [left_out]
    return [*arms, Arm("off", off, Role.OFF)], []


def alike(arms: Sequence[Arm], ab: AbConfig) -> list[Arm]:
    """The arms as they take turns: as many requests in each, the prompts of all those of the first.

    Raises:
        ConfigError: prompts that cannot be made anew for every round.
    """
    first = arms[0].config
    chunk = max(ab.chunk_of(arm.config.load) for arm in arms)
    made = []
    for arm in arms:
        config = arm.config
        if config.dataset.dataset_name not in DATASETS:
            raise ConfigError(
                f"--dataset-name {config.dataset.dataset_name}: bench ab makes new prompts for every round, "
                f"as it can of {', '.join(DATASETS)}"
            )
        if len(config.request.url) > 1:
            raise ConfigError("--url is one server in bench ab: several are arms, as --arm b:base-url=URL")
        config = dataclasses.replace(
            config,
            load=dataclasses.replace(config.load, repeats=ab.most_rounds),
            dataset=dataclasses.replace(config.dataset, num_prompts=chunk, seed=first.dataset.seed),
            prompts_key=first.key(),
        )
        made.append(dataclasses.replace(arm, config=config))
    return made


def same_arms(arms: Sequence[Arm]) -> str | None:
    """A note on arms that do not differ; None where all do."""
    found: dict[str, list[str]] = {}
    for arm in arms:
        found.setdefault(repr((arm.role, arm.config.stored())), []).append(arm.name)
    same = [" and ".join(names) for names in found.values() if len(names) > 1]
    if not same:
        return None
    return f"{'; '.join(same)} do not differ: an A/A trial, whose differences are chance"


def variant_of(arm: Arm, endpoint: Endpoint, number_on_server: int) -> Variant:
    """How the arm asks. `number_on_server`: of the arms that ask this one."""
    return Variant(
        salt=number_on_server * _SALT_STEP,
        unshared=arm.role is Role.MISS and not can_force(endpoint),
        prewarmed=arm.config.dataset.dataset_name not in NOT_PREWARMED,
        cold_once=arm.config.load.flush_cache is not True,
    )


def as_asked(arm: Arm, endpoint: Endpoint) -> Endpoint:
    """The server as this arm uses it.

    Raises:
        ConfigError: it cannot show what the arm is there for.
    """
    if arm.role is Role.HIT and endpoint.expects_miss is not None:
        raise ConfigError(
            f"{endpoint.url} serves nothing from its cache ({endpoint.expects_miss}): no arm could hit"
        )
    if arm.role is Role.MISS and can_force(endpoint):
        extra_body = {**endpoint.extra_body, "force_miss": True}
        return dataclasses.replace(endpoint, extra_body=extra_body, expects_miss=FORCED)
    return endpoint


def can_force(endpoint: Endpoint) -> bool:
    """Whether a request can be told to miss: on servers of ours."""
    return endpoint.facts.backend == "prefixlab" or endpoint.backend == "in-process"


def same_server(config: ServeConfig) -> str:
    """Equal of arms that one open endpoint serves."""
    kept = config.stored()
    return repr((kept["target"], kept["engine"], kept["request"]))
