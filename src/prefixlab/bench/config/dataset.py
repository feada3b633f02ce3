"""Settings of what is asked: which prompts, how many, how long, and how the answer is sampled.

Owns the flags vLLM's and SGLang's users know for that, and what a range ratio means to each of them. Makes no
prompt.

Invariant: every number decided or refused by the flag's name; defaults live only here.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec

from prefixlab.core.config import did_you_mean, setting
from prefixlab.core.errors import ConfigError

TRACE_DATASETS = ("trace", "mooncake", "timed_trace", "burstgpt", "agentic-trace")
"""A recorded trace, by our name and by those of vLLM's and SGLang's clients; which format it has its content
shows."""
DATASETS = (
    *("random", "shared-prefix", "hit-rate", "prefix_repetition", "generated-shared-prefix"),
    *("sessions", "custom", "sharegpt", "openai", "saved", "prefix-ratio"),
    *TRACE_DATASETS,
)
LATER_DATASETS = (
    *("random-mm", "random-rerank", "hf", "custom_audio", "custom_image"),
    *("spec_bench", "speed_bench"),
    *("mmmu", "image", "longbench_v2", "speed-bench"),
)
"""Names vLLM's and SGLang's users know, of data sets that are not here yet."""
DATASET_ALIASES = {"random-ids": "random"}
"""SGLang's name for random token ids, which is what `random` is here."""
DEFAULT_NUM_PROMPTS = 1000
DEFAULT_CUSTOM_OUTPUT_LEN = 256
FROM_FILE = -1
FILE_DATASETS = ("custom", "sharegpt", "openai", "saved")
"""Prompts as a file of --dataset-path has them; the prompts of all others are made up."""
CHOSEN_DATASETS = ("custom", "sharegpt", "openai")
"""Files whose rows are chosen from; a saved workload is sent as it is."""
LENGTH_LAWS = ("uniform", "normal", "lognormal")
OPTIONS_OF: dict[str, tuple[str, ...]] = {
    "custom_output_len": ("custom",),
    **dict.fromkeys(("oversample", "chat_template"), CHOSEN_DATASETS),
    "shuffle": (*CHOSEN_DATASETS, "prefix_repetition"),
    **dict.fromkeys(("random_prefix_len", "random_range_ratio", "range_ratio_of"), ("random",)),
    "prompt_form": tuple(name for name in DATASETS if name not in FILE_DATASETS),
    "dataset_path": (*FILE_DATASETS, *TRACE_DATASETS, "sessions"),
    "num_prompts": tuple(name for name in DATASETS if name != "sessions"),
}
"""Options of some data sets only."""
WARM_UP_OPTIONS = ("random_input_len", "random_output_len")
"""Also of warm-up requests, with any data set."""
LENGTH_DATASETS = ("random", "prefix-ratio")
"""Those that take lengths from WARM_UP_OPTIONS; all others have lengths of their own."""


@dataclass(frozen=True, slots=True)
class LengthRange:
    """Lengths drawn evenly from `low … high`, both included."""

    low: int
    high: int

    def __str__(self) -> str:
        return f"{self.low:,}" if self.low == self.high else f"{self.low:,} … {self.high:,}"


@dataclass(frozen=True)
class DatasetConfig:
    """Which prompts."""

    dataset_name: str = setting(
        "random", f"what prompts are made of or read from: {', '.join(DATASETS)}", metavar="NAME"
    )
    dataset_path: str | None = setting(
        None,
        'custom: JSON lines with "prompt" (and "output_tokens"), or with OpenAI\'s "messages"; openai: JSON '
        "lines as requests to its API; sharegpt: JSON of conversations; saved: what --save-workload wrote",
        metavar="FILE",
    )
    num_prompts: int | None = setting(
        None,
        f"requests to send (default: {DEFAULT_NUM_PROMPTS}; with --stage, --schedule, or --duration and a "
        "rate as many as arrive; files: all their rows)",
    )
    seed: int = setting(42, "seed of prompts, lengths and arrivals")
    random_input_len: int = setting(
        1024,
        "tokens of each random prompt, not counting --random-prefix-len",
        aliases=("--input-len", "--isl", "--random-input"),
    )
    random_output_len: int = setting(
        128,
        "output tokens of each request with a random prompt",
        aliases=("--output-len", "--osl", "--random-output"),
    )
    random_range_ratio: str | None = setting(
        None,
        'spread of lengths (default: none), as --range-ratio-of means it; also {"input": R, "output": R}',
        metavar="R",
    )
    range_ratio_of: str | None = setting(
        None,
        "whose R that is: vllm draws from [len·(1-R), len·(1+R)], sglang from [len·R, len] (default: sglang "
        "with a --backend of SGLang's, else vllm)",
        choices=("vllm", "sglang"),
    )
    random_prefix_len: int = setting(0, "tokens at the start of every random prompt, the same in all")
    custom_output_len: int | None = setting(
        None,
        f"custom: output tokens of each request; {FROM_FILE}: each row's own output_tokens (default: its "
        f"own, {DEFAULT_CUSTOM_OUTPUT_LEN} where a row has none)",
    )
    oversample: bool = setting(
        True,
        "files: repeat rows where the file has fewer than --num-prompts, as vLLM's and SGLang's clients do; "
        "--no-oversample refuses",
    )
    shuffle: bool = setting(True, "files and prefix_repetition: send the prompts in random order")
    chat_template: bool = setting(
        False, "files: put text into the chat template of --tokenizer before it goes to an API without one"
    )
    prompt_form: str | None = setting(
        None,
        "how random prompts travel (default: ids where the API takes them)",
        choices=("ids", "text"),
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "dataset_name", DATASET_ALIASES.get(self.dataset_name, self.dataset_name))
        name = self.dataset_name
        if name in LATER_DATASETS:
            there = ", ".join(DATASETS)
            raise ConfigError(f"--dataset-name {name} comes in a later version; there is {there}")
        if name not in DATASETS:
            known = [*DATASETS, *LATER_DATASETS]
            raise ConfigError(
                f"--dataset-name {name}: there is {', '.join(DATASETS)}{did_you_mean(name, known)}"
            )
        if name in (*FILE_DATASETS, *TRACE_DATASETS) and self.dataset_path is None:
            raise ConfigError(f"--dataset-name {name} reads a file: give --dataset-path")
        if name == "sessions" and self.num_prompts is not None:
            raise ConfigError("--num-prompts counts requests: of sessions there are --num-sessions")
        self._check_unused()
        for field, least in (
            ("num_prompts", 1),
            ("seed", 0),
            ("random_input_len", 1),
            ("random_output_len", 1),
            ("random_prefix_len", 0),
        ):
            value = getattr(self, field)
            if value is not None and value < least:
                raise ConfigError(f"--{field.replace('_', '-')} must be at least {least}, not {value}")
        if self.custom_output_len is not None and not (
            self.custom_output_len >= 1 or self.custom_output_len == FROM_FILE
        ):
            raise ConfigError(
                f"--custom-output-len must be at least 1, or {FROM_FILE} for each row's own, not "
                f"{self.custom_output_len}"
            )
        self.ratios()

    def _check_unused(self) -> None:
        """What only other data sets take is refused, not passed over."""
        for option in dataclasses.fields(self):
            value, datasets = getattr(self, option.name), OPTIONS_OF.get(option.name, DATASETS)
            if self.dataset_name not in datasets and value != option.default:
                negated = "no-" if value is False else ""
                flag = f"--{negated}{option.name.replace('_', '-')}"
                made_up = "random" in datasets and len(datasets) > 1
                others = "made-up prompts" if made_up else f"--dataset-name {' or '.join(datasets)}"
                raise ConfigError(f"{flag} is for {others}, not {self.dataset_name}")

    def ratios(self) -> tuple[float, float] | None:
        """Of input and output; None where lengths are fixed."""
        if self.random_range_ratio is None:
            return None
        text = self.random_range_ratio
        try:
            given: Any = msgspec.json.decode(text)
            both = (given["input"], given["output"]) if isinstance(given, dict) else (given, given)
            ratios = float(both[0]), float(both[1])
            known = not isinstance(given, dict) or set(given) == {"input", "output"}
        except (msgspec.DecodeError, KeyError, TypeError, ValueError):
            known = False
        if not known:
            raise ConfigError(
                f'--random-range-ratio takes a number or {{"input": R, "output": R}}, not {text!r}'
            )
        if not all(0 <= ratio <= 1 for ratio in ratios):
            raise ConfigError(f"--random-range-ratio must lie in [0, 1], not {text}")
        return ratios

    def lengths(self, *, as_sglang: bool) -> tuple[LengthRange, LengthRange]:
        """Of the random part of a prompt, and of outputs."""
        ratios = self.ratios()
        lens = (self.random_input_len, self.random_output_len)
        if ratios is None:
            return LengthRange(lens[0], lens[0]), LengthRange(lens[1], lens[1])
        low, high = (
            length_range(length, ratio, as_sglang) for length, ratio in zip(lens, ratios, strict=True)
        )
        return low, high


def length_range(length: int, ratio: float, as_sglang: bool) -> LengthRange:
    """What a range ratio means to users of vLLM's client (both ways), or of SGLang's (downwards only)."""
    if as_sglang:
        return LengthRange(max(1, int(length * ratio)), length)
    return LengthRange(max(1, math.floor(length * (1 - ratio))), math.ceil(length * (1 + ratio)))


@dataclass(frozen=True)
class RandomLengthsConfig:
    """How long random prompts and outputs are, where that is more than an even range."""

    DATASETS: ClassVar[tuple[str, ...]] = ("random",)

    random_length_law: str = setting(
        "uniform",
        "how lengths lie about --random-input-len and --random-output-len: uniform within "
        "--random-range-ratio, or by a law with --random-length-cv",
        choices=LENGTH_LAWS,
    )
    random_length_cv: float = setting(
        0.5, "standard deviation of normal and lognormal lengths, over the mean"
    )
    random_length_file: str | None = setting(
        None,
        "draw lengths of prompts and outputs, in pairs, from a trace or a CSV with num_prefill_tokens and "
        "num_decode_tokens",
        metavar="FILE",
    )

    def __post_init__(self) -> None:
        if not 0 < self.random_length_cv < math.inf:
            raise ConfigError(f"--random-length-cv must be above 0, not {self.random_length_cv:g}")
        if self.random_length_law == "uniform" and self.random_length_cv != 0.5:
            raise ConfigError("--random-length-cv is for --random-length-law normal and lognormal")
        if self.random_length_file is not None and self.random_length_law != "uniform":
            raise ConfigError("--random-length-law and --random-length-file both say how long prompts are")


@dataclass(frozen=True)
class ShareGptConfig:
    """Conversations that people had, shaped by SGLang's flags for its data sets `sharegpt` and `openai`."""

    DATASETS: ClassVar[tuple[str, ...]] = ("sharegpt", "openai")

    sharegpt_output_len: int | None = setting(
        None,
        "output tokens of each request (default: as long as the reply in the file, for which --tokenizer is "
        "needed; openai: max_tokens where a line has it)",
    )
    sharegpt_context_len: int | None = setting(
        None, "leave out conversations of more tokens, prompt and output together (needs --tokenizer)"
    )

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, not {value}")


@dataclass(frozen=True)
class SamplingConfig:
    """How answers are sampled. What is not given is left to the server, the temperature apart."""

    temperature: float = setting(0.0, "sampling temperature")
    top_p: float | None = setting(None, "nucleus sampling")
    top_k: int | None = setting(None, "sample from so many of the likeliest tokens")
    min_p: float | None = setting(None, "sample from tokens at least so likely, relative to the likeliest")
    frequency_penalty: float | None = setting(None, "penalty on tokens by how often they came")
    presence_penalty: float | None = setting(None, "penalty on tokens that came")
    repetition_penalty: float | None = setting(None, "factor against tokens that came")
    logprobs: int | None = setting(None, "ask for the log probabilities of so many tokens at each place")

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ConfigError(f"--temperature must not be negative, not {self.temperature}")
        if self.logprobs is not None and self.logprobs < 0:
            raise ConfigError(f"--logprobs must not be negative, not {self.logprobs}")

    def given(self) -> dict[str, Any]:
        """The sampling parameters given besides temperature and logprobs, under the names of every API."""
        names = ("top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty")
        return {name: value for name in names if (value := getattr(self, name)) is not None}
