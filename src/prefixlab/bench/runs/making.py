"""From `--dataset-name` to a workload: the one table of what can be asked.

Owns that table. How each workload is made is its own file's.

Invariant: every name that settings accept has a maker here, and a maker reads its own settings only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np

from prefixlab.bench.config.dataset import (
    DEFAULT_NUM_PROMPTS,
    FILE_DATASETS,
    TRACE_DATASETS,
    ShareGptConfig,
)
from prefixlab.bench.config.serve import ServeConfig
from prefixlab.bench.config.sessions import SessionsConfig
from prefixlab.bench.config.sharing import DEFAULT_PAGE_SIZE
from prefixlab.bench.report.console import counted
from prefixlab.bench.runs.sessions import num_arriving
from prefixlab.bench.runs.trace import chosen_trace, made_to_fit, trace_workload
from prefixlab.bench.traces.reading import read_trace
from prefixlab.bench.workloads.files.conversations import holds_conversations, talks_workload
from prefixlab.bench.workloads.files.custom import Row, choose_rows, read_rows
from prefixlab.bench.workloads.files.messages import read_messages
from prefixlab.bench.workloads.files.saved import saved_workload, tokenizer_of
from prefixlab.bench.workloads.files.sharegpt import read_sharegpt
from prefixlab.bench.workloads.generators.hit_rate import CacheSize, hit_rate_workload
from prefixlab.bench.workloads.generators.lengths import Seen, Spread
from prefixlab.bench.workloads.generators.prefix_ratio import PrefixRatioShape, prefix_ratio_workload
from prefixlab.bench.workloads.generators.random import RandomShape, random_workload
from prefixlab.bench.workloads.generators.sessions import (
    ThinkTime,
    first_sessions,
    made_up_sessions,
    recorded_workload,
    think_time,
)
from prefixlab.bench.workloads.generators.sharing import (
    generated_shared_prefix_workload,
    prefix_repetition_workload,
    shared_prefix_workload,
)
from prefixlab.bench.workloads.workload import Workload
from prefixlab.core.errors import ConfigError
from prefixlab.core.seams import Tokenizer

ReadCounting = Callable[[Path, Tokenizer | None, int | None, int | None], tuple[Sequence[Row], Sequence[str]]]
SHAREGPT_FLAGS = "the file's prompts, --sharegpt-output-len and --sharegpt-context-len"

CHAT_ROOM = 64
"""Tokens that a chat template may take at either end of a prompt."""
Maker = Callable[[ServeConfig, int | None], Workload]
"""Args: the point's settings; how many requests are wanted, None: as many as the workload itself decides."""


def make_workload(config: ServeConfig, count: int | None, tokenizer: Tokenizer | None = None) -> Workload:
    """`tokenizer` counts what a file has as text. Raises ConfigError where files cannot be read, or settings
    contradict each other."""
    counting = COUNTING_MAKERS.get(config.dataset.dataset_name)
    if counting is not None:
        return counting(config, count, tokenizer)
    return MAKERS[config.dataset.dataset_name](config, count)


def default_num_prompts(config: ServeConfig, tokenizer: Tokenizer | None = None) -> int:
    """How many requests there are where neither --num-prompts nor arrivals say so; `tokenizer` as above."""
    load, dataset = config.load, config.dataset
    if dataset.dataset_name in (*FILE_DATASETS, *TRACE_DATASETS):
        needs_all = dataset.num_prompts is None and load.has_rate and not load.ends_by_itself
        return len(make_workload(config, None, tokenizer)) if needs_all else DEFAULT_NUM_PROMPTS
    if config.dataset.dataset_name == "generated-shared-prefix":
        return config.gsp.num_prompts
    if config.dataset.dataset_name in SessionsConfig.DATASETS and config.load.has_times:
        return num_arriving(_sessions(config, None))
    return DEFAULT_NUM_PROMPTS


def _random(config: ServeConfig, count: int | None) -> Workload:
    dataset, laws = config.dataset, config.random_lengths
    num_prompts = DEFAULT_NUM_PROMPTS if count is None else count
    inputs, outputs = dataset.lengths(as_sglang=config.as_sglang)
    shape = RandomShape(num_prompts, inputs, outputs, dataset.random_prefix_len)
    is_even = laws.random_length_law == "uniform" and laws.random_length_file is None
    if dataset.random_range_ratio is not None and not is_even:
        raise ConfigError("--random-range-ratio: --random-length-law or --random-length-file says it already")
    if laws.random_length_law != "uniform":
        law, cv = laws.random_length_law, laws.random_length_cv
        about = Spread(law, dataset.random_input_len, cv), Spread(law, dataset.random_output_len, cv)
        shape = replace(shape, inputs=about[0], outputs=about[1])
    if laws.random_length_file is not None:
        trace = read_trace(laws.random_length_file)
        shape = replace(shape, seen=Seen(trace.name, trace.prompt_tokens, trace.output_tokens))
    return random_workload(shape, dataset.seed, config.key())


def _custom(config: ServeConfig, count: int | None) -> Workload:
    dataset = config.dataset
    all_rows = read_rows(_path(config), dataset.custom_output_len)
    flags = "the file's prompts, and --custom-output-len"
    return _chosen(config, count, all_rows, flags)


def _sharegpt(config: ServeConfig, count: int | None, tokenizer: Tokenizer | None) -> Workload:
    all_rows, notes = _counted(read_sharegpt, config, tokenizer)
    return _chosen(config, count, all_rows, SHAREGPT_FLAGS, *notes)


def _openai(config: ServeConfig, count: int | None, tokenizer: Tokenizer | None) -> Workload:
    all_rows, notes = _counted(read_messages, config, tokenizer)
    return _chosen(config, count, all_rows, SHAREGPT_FLAGS, *notes)


def _counted(
    read: ReadCounting, config: ServeConfig, tokenizer: Tokenizer | None
) -> tuple[Sequence[Row], Sequence[str]]:
    path = _path(config)
    stamp = (path.stat().st_mtime_ns, path.stat().st_size) if path.exists() else None
    return _read_once(read, path, stamp, cast(Any, tokenizer), config.sharegpt)


@lru_cache(maxsize=4)
def _read_once(
    read: ReadCounting, path: Path, stamp: object, tokenizer: Tokenizer | None, config: ShareGptConfig
) -> tuple[Sequence[Row], Sequence[str]]:
    """Once for a file that has not changed: settings, checks and the run all ask for it."""
    return read(path, tokenizer, config.sharegpt_output_len, config.sharegpt_context_len)


def _saved(config: ServeConfig, count: int | None) -> Workload:
    workload = saved_workload(_path(config))
    if workload.offsets_s is not None and not config.load.fixed_schedule:
        note = "the file has times of its own, which --fixed-schedule sends at"
        workload = replace(workload, notes=(*workload.notes, note))
    in_words = not workload.rows_known and config.target.tokenizer is None
    if in_words and (name := tokenizer_of(_path(config))) is not None:
        note = f"its texts were counted with --tokenizer {name}: give it again, or hits cannot be checked"
        workload = replace(workload, notes=(*workload.notes, note))
    return workload if count is None else workload.first(count)


def _path(config: ServeConfig) -> Path:
    assert config.dataset.dataset_path is not None, "checked with the settings"
    return Path(config.dataset.dataset_path)


def _chosen(
    config: ServeConfig, count: int | None, all_rows: Sequence[Row], flags: str, *more: str
) -> Workload:
    """Of a file's rows as many as asked for, in the order asked for."""
    dataset = config.dataset
    rows = choose_rows(all_rows, dataset)
    rows = rows if count is None else rows[:count]
    template = ", in the tokenizer's chat template" if dataset.chat_template else ""
    notes = [f"prompts are those of {dataset.dataset_path}{template}", *more]
    num_distinct = min(len(rows), len(all_rows))
    if num_distinct < len(rows):
        notes.append(
            f"the file's {counted(num_distinct, 'row')} were repeated to make "
            f"{counted(len(rows), 'request')}: what is repeated hits the cache"
        )
    return Workload(rows=rows, notes=tuple(note for note in notes if note), length_flags=flags)


def _prefix_ratio(config: ServeConfig, count: int | None) -> Workload:
    lengths = config.dataset.random_input_len, config.dataset.random_output_len
    shape = PrefixRatioShape(count or DEFAULT_NUM_PROMPTS, *lengths, max(1, len(config.request.url)))
    return prefix_ratio_workload(config.prefix_ratio, shape, config.dataset.seed, config.key())


def _shared_prefix(config: ServeConfig, count: int | None) -> Workload:
    return shared_prefix_workload(config.shared_prefix, count, config.dataset.seed, config.key())


def _prefix_repetition(config: ServeConfig, count: int | None) -> Workload:
    key, shuffle = (config.dataset.seed, config.key()), config.dataset.shuffle
    return prefix_repetition_workload(config.prefix_repetition, count, *key, shuffle=shuffle)


def _hit_rate(config: ServeConfig, count: int | None) -> Workload:
    hits = config.hit_rate
    page_size = hits.hit_rate_page_size or config.target.page_size or DEFAULT_PAGE_SIZE
    cache = CacheSize(page_size, hits.hit_rate_capacity)
    room = CHAT_ROOM if config.target.backend == "openai-chat" else 0
    return hit_rate_workload(hits, cache, count, config.dataset.seed, config.key(), room=room)


def _generated_shared_prefix(config: ServeConfig, count: int | None) -> Workload:
    return generated_shared_prefix_workload(config.gsp, count, config.dataset.seed, config.key())


def _sessions(config: ServeConfig, count: int | None) -> Workload:
    """`count`: of sessions."""
    options, key = config.sessions, (config.dataset.seed, config.key())
    if config.dataset.dataset_path is None:
        return made_up_sessions(options, count, *key)
    in_words = holds_conversations(_path(config))
    options.check_file(config.trace, in_words=in_words)
    if in_words:
        return talks_workload(
            _path(config),
            options.turn_output_len,
            think_time(options) or ThinkTime(0.0),
            *key,
            num_sessions=count,
            num_turns=options.num_turns,
        )
    chosen = first_sessions(chosen_trace(config), count, options.num_turns)
    if config.trace.factor != 1 and (chosen.think_s is None or np.isnan(chosen.think_s).all()):
        raise ConfigError(
            f"--speedup and --time-scale change recorded think times, of which {chosen.name} has none"
        )
    fitted, _ = made_to_fit(chosen, config.trace)
    return recorded_workload(fitted, think_time(options), *key, unfitted=chosen)


MAKERS: dict[str, Maker] = {
    "sessions": _sessions,
    "random": _random,
    "custom": _custom,
    "saved": _saved,
    "prefix-ratio": _prefix_ratio,
    "shared-prefix": _shared_prefix,
    "hit-rate": _hit_rate,
    "prefix_repetition": _prefix_repetition,
    "generated-shared-prefix": _generated_shared_prefix,
    **dict.fromkeys(TRACE_DATASETS, trace_workload),
}

CountingMaker = Callable[[ServeConfig, int | None, Tokenizer | None], Workload]
COUNTING_MAKERS: dict[str, CountingMaker] = {"sharegpt": _sharegpt, "openai": _openai}
"""Of files whose texts somebody must count."""
