from __future__ import annotations

import pytest

from prefixlab.cli import bench_serve, bench_sweep, peer_flags
from prefixlab.cli.main import Parser, main, make_parser

VLLM = """
--append-result --asr-max-audio-len-sec --asr-min-audio-len-sec --backend --base-url --bfcl-categories
--blazedit-max-distance --blazedit-min-distance --burstiness --chat-template-kwargs
--custom-ensure-client-side-data --custom-output-len --dataset-name --dataset-path --disable-shuffle
--disable-tqdm --enable-multimodal-chat --endpoint --extra-body --frequency-penalty --goodput --header --help
--hf-name --hf-output-len --hf-split --hf-subset --host --ignore-eos --input-len --insecure --label --logprobs
--lora-assignment --lora-modules --max-concurrency --metadata --metric-percentiles --min-p --model
--no-oversample --no-reranker --no-self-timed --no-stream --num-prompts --num-warmups --output-len
--percentile-metrics --plot-dataset-stats --plot-timeline --port --prefix-repetition-num-prefixes
--prefix-repetition-output-len --prefix-repetition-prefix-len --prefix-repetition-suffix-len
--presence-penalty --probe-request-rate --profile --ramp-up-end-rps --ramp-up-start-rps --ramp-up-strategy
--random-batch-size --random-input-len --random-mm-base-items-per-request --random-mm-bucket-config
--random-mm-limit-mm-per-prompt --random-mm-num-mm-items-range-ratio --random-output-len --random-prefix-len
--random-range-ratio --ready-check-timeout-sec --repetition-penalty --request-id-prefix --request-rate
--result-dir --result-filename --save-detailed --save-result --seed --self-timed --served-model-name
--sharegpt-output-len --skip-chat-template --skip-tokenizer-init --spec-bench-category
--spec-bench-output-len --speed-bench-category --speed-bench-dataset-subset --speed-bench-output-len
--temperature --timed-trace-chunk-hash-size --timed-trace-label-hash-ids --timed-trace-label-input-length
--timed-trace-label-output-length --timed-trace-label-timestamp --timed-trace-sec-multiplier
--timeline-itl-thresholds --tokenizer --tokenizer-mode --top-k --top-p --trust-remote-code --use-beam-search
"""
"""Every flag of `vllm bench serve --help=all`, 0.32.0."""

SGLANG = """
--agentic-max-turns --apply-chat-template --backend --base-url --cache-report --dataset-name --dataset-offset
--dataset-path --disable-ignore-eos --disable-stream --disable-tqdm --extra-request-body --fake-prefill
--flush-cache --flush-cache-timeout --goodput --gsp-fast-prepare --gsp-group-distribution --gsp-num-groups
--gsp-num-turns --gsp-ordered --gsp-output-len --gsp-prompts-per-group --gsp-question-len --gsp-range-ratio
--gsp-send-routing-key --gsp-system-prompt-len --gsp-zipf-alpha --header --host --image-content --image-count
--image-format --image-resolution --logprob-start-len --lora-name --lora-request-distribution
--lora-zipf-alpha --max-concurrency --model --mooncake-num-rounds --mooncake-slowdown-factor
--mooncake-workload --num-prompts --output-details --output-file --pd-separated --plot-throughput --port
--print-requests --profile --profile-activities --profile-by-stage --profile-decode-url --profile-num-steps
--profile-output-dir --profile-prefill-url --profile-prefix --profile-stages --profile-start-step
--profile-steps --prompt-suffix --random-image-count --random-input --random-input-len --random-output
--random-output-len --random-range-ratio --ready-check-timeout-sec --request-rate --return-logprob
--return-routed-experts --rust-client --rust-worker-threads --seed --served-model-name --sharegpt-context-len
--sharegpt-output-len --speed-bench-category --speed-bench-output-len --tag --temperature --token-ids-logprob
--tokenize-prompt --tokenizer --top-logprobs-num --top-p --use-trace-timestamps --warmup-requests
"""
"""Every flag of SGLang's `sglang.benchmark.serving`, 0.5.23, and two older spellings."""

PARSERS = {
    "bench serve": make_parser(bench_serve, ["prefixlab", "bench", "serve"]),
    "bench sweep": make_parser(bench_sweep, ["prefixlab", "bench", "sweep"]),
}


@pytest.mark.parametrize("parser", PARSERS.values(), ids=PARSERS)
@pytest.mark.parametrize("flag", sorted(set(f"{VLLM} {SGLANG}".split())))
def test_every_flag_of_vllms_and_sglangs_clients_is_honoured_or_refused_by_name(
    flag: str, parser: Parser
) -> None:
    assert (flag in parser.option_strings) != (peer_flags.why_refused(flag) is not None)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (
            ["--gsp-num-groups", "4"],
            "--gsp-num-groups is for --dataset-name generated-shared-prefix, not random",
        ),
        (["--gsp-num-turns", "4"], "--gsp-num-turns makes conversations: --dataset-name sessions has them"),
        (["--gsp-send-routing-key"], "--gsp-send-routing-key sends a header for each group"),
        (["--lora-modules", "a", "b"], "--lora-modules chooses among LoRA modules"),
        (["--profile"], "--profile profiles the server"),
        (["--disable-stream"], "--disable-stream asks for answers in one piece"),
        (["--probe-request-rate", "2"], "--probe-request-rate sends probes beside the load"),
        (["--dataset-name", "spec_bench"], "--dataset-name spec_bench comes in a later version"),
        (["--dataset-name", "shargpt"], "did you mean 'sharegpt'"),
        (["--backend", "openai-embeddings"], "--backend openai-embeddings: there is"),
        (
            ["--mooncake-num-rounds", "2"],
            "--mooncake-num-rounds: 2: a trace's requests are sent once each; prefixlab bench sessions has",
        ),
        (["--dataset-name", "nonsense"], "there is random, shared-prefix, hit-rate, "),
        (
            ["--mooncake-workload", "toolagent"],
            "--mooncake-workload downloads a trace: prefixlab trace fetch",
        ),
        (["--timed-trace-label-hash-ids", "h"], "--timed-trace-label-hash-ids gives a field another name"),
        (["--self-timed"], "--fixed-schedule is for traces, not random"),
        (["--speedup", "2"], "--speedup is for --dataset-name trace or mooncake"),
        (["--dataset-name", "mooncake"], "--dataset-name mooncake reads a file: give --dataset-path"),
        (["--tokenizer-mode", "mistral"], "--tokenizer-mode: invalid choice"),
        (["--num-promts", "4"], "unknown option '--num-promts'; did you mean '--num-prompts'?"),
    ],
)
def test_what_is_not_honoured_is_refused_with_a_reason(
    words: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "serve", "--port", "9", *words]) == 2
    assert reason in capsys.readouterr().err


def test_what_is_so_anyway_leaves_no_setting_behind() -> None:
    words = [*peer_flags.ANYWAY, "--tokenizer-mode", "auto"]
    assert vars(PARSERS["bench serve"].parse_strictly(words)) == {}


@pytest.mark.parametrize("flag", peer_flags.SPELT_OTHERWISE)
def test_what_is_spelt_otherwise_sets_what_its_help_says(flag: str) -> None:
    name, value, _ = peer_flags.SPELT_OTHERWISE[flag]
    assert vars(PARSERS["bench serve"].parse_strictly([flag])) == {name: value}
