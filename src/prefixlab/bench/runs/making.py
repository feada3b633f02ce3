"""From `--dataset-name` to a workload: the one table of what can be asked.

Owns that table. How each workload is made is its own file's.

Invariant: every name that settings accept has a maker here, and a maker reads its own settings only.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from prefixlab.bench.config.dataset import DEFAULT_NUM_PROMPTS
from prefixlab.bench.config.serve import ServeConfig
from prefixlab.bench.report.console import counted
from prefixlab.bench.workloads.files.custom import choose_rows, read_rows
from prefixlab.bench.workloads.generators.random import RandomShape, random_workload
from prefixlab.bench.workloads.generators.sharing import (
    generated_shared_prefix_workload,
    prefix_repetition_workload,
    shared_prefix_workload,
)
from prefixlab.bench.workloads.workload import Workload

Maker = Callable[[ServeConfig, int | None], Workload]
"""Args: the point's settings; how many requests are wanted, None: as many as the workload itself decides."""


def make_workload(config: ServeConfig, count: int | None) -> Workload:
    """Raises ConfigError where files cannot be read, or settings contradict each other."""
    return MAKERS[config.dataset.dataset_name](config, count)


def default_num_prompts(config: ServeConfig) -> int:
    """How many requests there are where neither --num-prompts nor arrivals say so."""
    if config.dataset.dataset_name == "generated-shared-prefix":
        return config.gsp.num_prompts
    return DEFAULT_NUM_PROMPTS


def _random(config: ServeConfig, count: int | None) -> Workload:
    inputs, outputs = config.dataset.lengths(as_sglang=config.as_sglang)
    num_prompts = DEFAULT_NUM_PROMPTS if count is None else count
    shape = RandomShape(num_prompts, inputs, outputs, config.dataset.random_prefix_len)
    return random_workload(shape, config.dataset.seed, config.key())


def _custom(config: ServeConfig, count: int | None) -> Workload:
    dataset = config.dataset
    assert dataset.dataset_path is not None, "checked with the settings"
    all_rows = read_rows(Path(dataset.dataset_path), dataset.custom_output_len)
    rows = choose_rows(all_rows, dataset)
    rows = rows if count is None else rows[:count]
    template = ", in the tokenizer's chat template" if dataset.chat_template else ""
    notes = [f"prompts are those of {dataset.dataset_path}{template}"]
    num_distinct = min(len(rows), len(all_rows))
    if num_distinct < len(rows):
        notes.append(
            f"the file's {counted(num_distinct, 'row')} were repeated to make "
            f"{counted(len(rows), 'request')}: what is repeated hits the cache"
        )
    flags = "the file's prompts, and --custom-output-len"
    return Workload(rows=rows, notes=tuple(notes), length_flags=flags)


def _shared_prefix(config: ServeConfig, count: int | None) -> Workload:
    return shared_prefix_workload(config.shared_prefix, count, config.dataset.seed, config.key())


def _prefix_repetition(config: ServeConfig, count: int | None) -> Workload:
    key, shuffle = (config.dataset.seed, config.key()), config.dataset.shuffle
    return prefix_repetition_workload(config.prefix_repetition, count, *key, shuffle=shuffle)


def _generated_shared_prefix(config: ServeConfig, count: int | None) -> Workload:
    return generated_shared_prefix_workload(config.gsp, count, config.dataset.seed, config.key())


MAKERS: dict[str, Maker] = {
    "random": _random,
    "custom": _custom,
    "shared-prefix": _shared_prefix,
    "prefix_repetition": _prefix_repetition,
    "generated-shared-prefix": _generated_shared_prefix,
}
