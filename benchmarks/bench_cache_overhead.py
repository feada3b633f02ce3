"""What the radix cache costs where it cannot help: no prompt shares anything with another.

Engines with the same weights in one process, `--cache radix` and `--cache none`, are given the same fresh
random prompts in turn, radix first in every other repeat, so drift of a shared machine falls on both. The
pool is smaller than what the run inserts: the tree matches, inserts and evicts all the time. Reported is the
ratio of throughputs (radix / none) per repeat; the ceiling is 1. Beside it, none against none: what a ratio
of 1 looks like on this machine.
"""

from __future__ import annotations

import numpy as np

from _common import card, parser, print_card, print_table, summary, write_json
from prefixlab.core.clock import MonotonicClock
from prefixlab.core.sampling_params import SamplingParams
from prefixlab.engine.llm import LLM


def tokens_per_s(llm: LLM, prompts: list[list[int]], output_len: int) -> float:
    clock = MonotonicClock()
    params = SamplingParams(max_new_tokens=output_len, temperature=0.0, ignore_eos=True)
    start_s = clock.now()
    results = llm.generate(prompts, params)
    duration_s = clock.now() - start_s
    assert sum(result.num_cached_tokens for result in results) == 0, "the prompts were to share nothing"
    return len(prompts) * (len(prompts[0]) + output_len) / duration_s


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--repeats", type=int, default=20)
    arguments.add_argument("--num-prompts", type=int, default=8)
    arguments.add_argument("--input-len", type=int, default=1024)
    arguments.add_argument("--output-len", type=int, default=32)
    arguments.add_argument("--page-size", type=int, default=16)
    arguments.add_argument("--seed", type=int, default=0)
    args = arguments.parse_args()

    facts = card("src", "benchmarks/bench_cache_overhead.py")
    print_card(facts)
    rng = np.random.default_rng(args.seed)
    total_tokens = args.num_prompts * (args.input_len + args.output_len)
    num_pages = 2 * total_tokens // args.page_size
    engines = {
        name: LLM("tiny", cache=cache, page_size=args.page_size, num_pages=num_pages)
        for name, cache in (("radix", "radix"), ("none", "none"), ("none again", "none"))
    }
    rates: dict[str, list[float]] = {name: [] for name in engines}
    for repeat in range(args.repeats + 1):
        # Distinct first tokens: at no page size can two prompts of one repeat share a page.
        firsts = rng.choice(np.arange(300, 4000), size=args.num_prompts, replace=False)
        prompts = rng.integers(300, 4000, size=(args.num_prompts, args.input_len))
        prompts[:, 0] = firsts
        order = list(engines) if repeat % 2 else list(reversed(engines))
        for name in order:
            rate = tokens_per_s(engines[name], prompts.tolist(), args.output_len)
            if repeat:  # the first pays for warming up torch
                rates[name].append(rate)

    stats = engines["radix"].cache_stats
    ratio = summary(np.array(rates["radix"]) / np.array(rates["none"]))
    noise = summary(np.array(rates["none again"]) / np.array(rates["none"]))
    headers = ["", "tok/s, median (p10 … p90)"]
    print_table(headers, [[name, summary(rate)] for name, rate in rates.items()])
    print(f"radix / none        {ratio}   ceiling 1")
    print(f"none again / none   {noise}   the machine's own noise")
    print(f"pages inserted {stats.num_inserted_pages_total:,}, evicted {stats.num_evicted_pages_total:,}")
    write_json(
        args.json,
        {
            "machine": facts,
            "settings": {key: value for key, value in vars(args).items() if key != "json"},
            "tokens_per_s": {name: summary(rate) for name, rate in rates.items()},
            "ratio_radix_to_none": ratio,
            "ratio_none_to_none": noise,
            "pages_inserted": stats.num_inserted_pages_total,
            "pages_evicted": stats.num_evicted_pages_total,
        },
    )


if __name__ == "__main__":
    main()
