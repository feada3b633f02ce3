"""What the scheduler costs, with a runner that takes no time: the model's share of a step is zero here.

  decode   256 requests that only decode: tokens scheduled per second of step() + run() + commit()
  churn    256 rows kept busy by requests that come and go (128 prompt tokens, 64 to 192 output): the same
           rate, with all that joining, leaving and prefill cost on the way
  prefill  requests that end with their first token: microseconds each, from the first step to the end; the
           longer prompts come in pieces of 2,048 tokens
  queue    256 rows decode while 1,000 requests wait for a row: microseconds a step, by policy

Everything runs on one thread. The variants take turns within each repeat, so that a slow moment of the
machine falls on all of them. Ceiling of the decode rate: a loop with nothing in it but the runner and one
list append per token, which is how a request gets its tokens.

    python benchmarks/bench_scheduler.py --json benchmarks/results/scheduler.json
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np

from _common import Summary, card, parser, print_card, print_table, rounded, summary, write_json
from prefixlab.cache.config import CacheConfig
from prefixlab.cache.manager import CacheManager
from prefixlab.core.batch import Batch, StepResult
from prefixlab.core.clock import MonotonicClock
from prefixlab.core.request import Request
from prefixlab.core.sampling_params import SamplingParams
from prefixlab.scheduler.config import POLICIES, SchedulerConfig
from prefixlab.scheduler.scheduler import Scheduler

BATCH_SIZE = 256
VOCAB_SIZE = 150_000
STOP_TOKEN_IDS = frozenset({0, 1})
"""As a model's end-of-sequence ids: looked for in every step, never sampled."""
GOAL_TOKENS_PER_S = 500_000


class NoRunner:
    """Every next token is the same, at once."""

    vocab_size = VOCAB_SIZE

    def __init__(self) -> None:
        self._token_ids = np.full(BATCH_SIZE, 7, dtype=np.int32)

    def run(self, batch: Batch) -> StepResult:
        return StepResult(self._token_ids[: batch.num_rows], 0.0)


@dataclass
class Engine:
    """A scheduler, its runner, and where its requests come from."""

    cache: str
    page_size: int
    num_pages: int
    max_model_len: int
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        config = SchedulerConfig(**({"max_running_requests": BATCH_SIZE} | self.settings))
        manager = CacheManager(
            CacheConfig(cache=self.cache, page_size=self.page_size),
            num_pages=self.num_pages,
            max_rows=BATCH_SIZE,
            max_tokens_per_row=self.max_model_len,
        )
        self.scheduler = Scheduler(config, manager, MonotonicClock(), max_model_len=self.max_model_len)
        self._runner = NoRunner()
        self._ids = count()
        self._rng = np.random.default_rng(0)

    def add(self, num_prompt_tokens: int, max_new_tokens: int, prefix: np.ndarray | None = None) -> None:
        prompt = self._rng.integers(2, VOCAB_SIZE, num_prompt_tokens, dtype=np.int32)
        if prefix is not None:
            prompt[: len(prefix)] = prefix
        sampling = SamplingParams(max_new_tokens=max_new_tokens)
        self.scheduler.add(Request(str(next(self._ids)), prompt, sampling, stop_token_ids=STOP_TOKEN_IDS))

    def step(self) -> int:
        """One step; returns the tokens decoded in it."""
        batch = self.scheduler.step()
        assert batch is not None, "nothing to do"
        self.scheduler.commit(batch, self._runner.run(batch))
        return batch.num_rows - batch.num_prefill_rows

    def step_until_all_decode(self) -> None:
        while self.step() < BATCH_SIZE:
            pass


def timed(call: Callable[[], Any]) -> float:
    """Seconds that `call` took."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def in_turns(variants: dict[str, Callable[[], float]], repeats: int) -> dict[str, Summary]:
    """Each variant's measurements, one of each in every repeat."""
    samples: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, measure in variants.items():
            samples[name].append(measure())
    return {name: summary(values) for name, values in samples.items()}


def decoding(cache: str, page_size: int, num_steps: int, repeats: int) -> Callable[[], float]:
    """Tokens per second over the next `num_steps` steps of 256 requests that decode."""
    num_prompt_tokens, num_output_tokens = 64, num_steps * (repeats + 1) + 10
    num_tokens = num_prompt_tokens + num_output_tokens
    engine = Engine(cache, page_size, BATCH_SIZE * -(-num_tokens // page_size), num_tokens)
    for _ in range(BATCH_SIZE):
        engine.add(num_prompt_tokens, num_output_tokens)
    engine.step_until_all_decode()

    def measure() -> float:
        return BATCH_SIZE * num_steps / timed(lambda: [engine.step() for _ in range(num_steps)])

    measure()
    return measure


def churning(cache: str, page_size: int, num_steps: int, *, mixed: bool) -> Callable[[], float]:
    """Tokens decoded per second over the next `num_steps` steps of requests that come and go."""
    num_pages = 2 * BATCH_SIZE * 320 // page_size
    engine = Engine(cache, page_size, num_pages, 320, {"enable_mixed_chunk": mixed})
    rng = np.random.default_rng(1)

    def refill() -> None:
        engine.scheduler.take_ended()
        while engine.scheduler.num_waiting + engine.scheduler.num_running < BATCH_SIZE:
            engine.add(128, int(rng.integers(64, 193)))

    def measure() -> float:
        num_tokens, elapsed_s = 0, 0.0
        for _ in range(num_steps):
            refill()  # making requests is not the scheduler's work
            start = time.perf_counter()
            num_tokens += engine.step()
            elapsed_s += time.perf_counter() - start
        return num_tokens / elapsed_s

    while engine.scheduler.num_running < BATCH_SIZE:
        refill()
        engine.step()
    measure()
    return measure


def prefilling(cache: str, num_prompt_tokens: int, num_shared_tokens: int) -> Callable[[], float]:
    """Microseconds per request that computes its prompt and ends, with the cache full and evicting."""
    num_pages = 64 * num_prompt_tokens // 16
    engine = Engine(cache, 16, num_pages, num_prompt_tokens + 16, {"max_running_requests": 16})
    prefix = np.random.default_rng(2).integers(2, VOCAB_SIZE, num_shared_tokens, dtype=np.int32)

    def measure() -> float:
        for _ in range(16):
            engine.add(num_prompt_tokens, 1, prefix)

        def run() -> None:
            while not engine.scheduler.is_idle:
                engine.step()
            engine.scheduler.take_ended()

        return 1e6 * timed(run) / 16

    for _ in range(8):
        measure()
    return measure


def queueing(policy: str, num_steps: int, repeats: int) -> Callable[[], float]:
    """Microseconds per decode step while 1,000 requests wait."""
    num_output_tokens = num_steps * (repeats + 1) + 10
    num_tokens = 64 + num_output_tokens
    settings = {"schedule_policy": policy}
    engine = Engine("radix", 16, 2 * BATCH_SIZE * -(-num_tokens // 16), num_tokens, settings)
    for _ in range(BATCH_SIZE):
        engine.add(64, num_output_tokens)
    engine.step_until_all_decode()
    for _ in range(1000):
        engine.add(64, 16)

    def measure() -> float:
        return 1e6 * timed(lambda: [engine.step() for _ in range(num_steps)]) / num_steps

    measure()
    return measure


def ceiling(num_steps: int) -> Callable[[], float]:
    """Tokens per second of the runner and one append per token."""
    engine = Engine("none", 16, BATCH_SIZE * 8, 128)
    for _ in range(BATCH_SIZE):
        engine.add(64, 64)
    engine.step_until_all_decode()
    batch = engine.scheduler.step()
    assert batch is not None
    runner = NoRunner()

    def measure() -> float:
        outputs: list[list[int]] = [[] for _ in range(BATCH_SIZE)]

        def run() -> None:
            for _ in range(num_steps):
                token_ids = runner.run(batch).token_ids.tolist()
                for output, token_id in zip(outputs, token_ids, strict=True):
                    output.append(token_id)

        return BATCH_SIZE * num_steps / timed(run)

    return measure


def main() -> None:
    options = parser(__doc__)
    options.add_argument(
        "--repeats", type=int, default=30, help="turns of all variants (default: %(default)s)"
    )
    options.add_argument("--steps", type=int, default=100, help="steps per turn (default: %(default)s)")
    args = options.parse_args()
    repeats, steps = args.repeats, args.steps

    facts = card(
        "src/prefixlab/scheduler",
        "src/prefixlab/cache",
        "src/prefixlab/core",
        "benchmarks/bench_scheduler.py",
    )
    print_card(facts)
    print("median (p10 … p90)\n")
    document: dict[str, Any] = {"card": facts, "batch_size": BATCH_SIZE}

    variants = [(cache, page_size) for page_size in (1, 16) for cache in ("radix", "none")]
    rates = {f"decode, {c}, page size {p}": decoding(c, p, steps, repeats) for c, p in variants}
    decode = in_turns({**rates, "ceiling": ceiling(steps)}, repeats)
    churn = in_turns(
        {
            f"churn{', mixed' if mixed else ''}, {c}, page size {p}": churning(c, p, steps, mixed=mixed)
            for mixed in (False, True)
            for c, p in variants
        },
        repeats,
    )
    top = decode["ceiling"].median
    print_table(
        ["decode tokens scheduled per second", "", "of the ceiling"],
        [[name, rate, f"{rate.median / top:.0%}"] for name, rate in decode.items()],
    )
    print_table(["the same, while requests come and go", ""], list(churn.items()))
    slowest = min(rate.median for name, rate in decode.items() if name != "ceiling")
    print(f"slowest decode: {slowest / GOAL_TOKENS_PER_S:.1f} x the goal of {GOAL_TOKENS_PER_S:,}\n")

    prefill = in_turns(
        {
            f"{num_tokens:,} tokens, {num_shared:,} of them shared, {cache}": prefilling(
                cache, num_tokens, num_shared
            )
            for num_tokens, num_shared in ((512, 0), (512, 256), (8192, 0), (8192, 4096))
            for cache in ("radix", "none")
        },
        repeats,
    )
    print_table(["prefill, us per request", ""], list(prefill.items()))

    queue = in_turns({policy: queueing(policy, steps, repeats) for policy in POLICIES}, repeats)
    print_table(["a decode step with 1,000 waiting, us", ""], list(queue.items()))

    document |= {
        "decode_tokens_per_s": decode,
        "churn_decode_tokens_per_s": churn,
        "slowest_decode_over_goal": rounded(slowest / GOAL_TOKENS_PER_S),
        "prefill_us_per_request": prefill,
        "step_us_with_1000_waiting": queue,
    }
    write_json(args.json, document)


if __name__ == "__main__":
    main()
