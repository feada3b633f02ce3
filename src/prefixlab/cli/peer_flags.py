"""Flags that users of vLLM's and SGLang's clients know, where they are not simply ours too.

Owns the table: which are spelt otherwise here, which change nothing because it is so anyway, and which are
refused, each with its reason. `tests/cli/test_peer_flags.py` walks every flag of both clients through it.

Invariant: a flag of theirs is honoured or refused by name; none is taken and ignored.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from prefixlab.core.errors import ConfigError

SPELT_OTHERWISE: Mapping[str, tuple[str, Any, str]] = {
    "--disable-ignore-eos": ("ignore_eos", False, "--no-ignore-eos, as SGLang's client spells it"),
    "--disable-shuffle": ("shuffle", False, "--no-shuffle, as vLLM's client spells it"),
    "--disable-tqdm": ("progress", False, "--no-progress, as both clients spell it"),
    "--skip-chat-template": ("chat_template", False, "--no-chat-template, as vLLM's client spells it"),
    "--apply-chat-template": ("chat_template", True, "--chat-template, as SGLang's client spells it"),
    "--tokenize-prompt": ("prompt_form", "ids", "--prompt-form ids, as SGLang's client spells it"),
    "--output-details": ("save_detailed", True, "--save-detailed, as SGLang's client spells it"),
    "--self-timed": ("fixed_schedule", True, "--fixed-schedule, as vLLM's client spells it"),
    "--no-self-timed": ("fixed_schedule", False, "--no-fixed-schedule, as vLLM's client spells it"),
    "--use-trace-timestamps": ("fixed_schedule", True, "--fixed-schedule, as SGLang's client spells it"),
    "--no-run-dir": ("run_dir", "", "keep nothing in a folder of its own"),
}
"""Flag → (setting, value, help)."""

ANYWAY: Mapping[str, str] = {
    "--trust-remote-code": "no code of a model's is run here, trusted or not",
    "--skip-tokenizer-init": "no tokenizer is loaded here unless --tokenizer names one",
    "--no-stream": "data sets are read whole here",
    "--cache-report": "cached tokens are always reported here",
    "--gsp-fast-prepare": "tokens are made up here, and none is counted again",
    "--rust-client": "the sockets have a loop of their own here",
}
"""Flags without a value that ask for what is done anyway."""

TOKENIZER_MODES = ("auto", "hf")

_LATER = "is for the data set {}, which comes in a later version"
_PROFILING = "profiles the server, which is its own business: use its profiler beside the run"
_LORA = "chooses among LoRA modules, which comes in a later version: --served-model-name names one"

_FAMILIES: tuple[tuple[str, str], ...] = (
    ("--asr-", _LATER.format("hf (speech)")),
    ("--bfcl-", _LATER.format("hf (BFCL)")),
    ("--blazedit-", _LATER.format("hf (blazedit)")),
    ("--hf-", _LATER.format("hf")),
    ("--image-", _LATER.format("image")),
    ("--lora-", _LORA),
    ("--profile-", _PROFILING),
    ("--random-mm-", _LATER.format("random-mm")),
    ("--spec-bench-", _LATER.format("spec_bench")),
    ("--speed-bench-", _LATER.format("speed_bench")),
    ("--timed-trace-label-", "gives a field another name: the fields are those of the known formats"),
)
_REFUSED: Mapping[str, str] = {
    "--chat-template-kwargs": "renders templates on the client: give --extra-body "
    "'{\"chat_template_kwargs\": {…}}' for the server's",
    "--custom-ensure-client-side-data": "is for images, which come in a later version",
    "--dataset-offset": "cuts a data set: cut the file",
    "--disable-stream": "asks for answers in one piece, and nothing can be timed inside those",
    "--enable-multimodal-chat": "is for images, which come in a later version",
    "--fake-prefill": "is for SGLang's decode servers: send what they need with --extra-request-body",
    "--flush-cache-timeout": "is 30 s here: so long a server may take to become idle before it is emptied",
    "--gsp-num-turns": "makes conversations: --dataset-name sessions has them, with --num-turns",
    "--gsp-send-routing-key": "sends a header for each group: a router that matches prefixes needs none",
    "--logprob-start-len": "asks for log probabilities of the prompt: send it with --extra-request-body",
    "--no-reranker": _LATER.format("random-rerank"),
    "--pd-separated": "is not needed: the router of such a deployment is the server to ask",
    "--plot-dataset-stats": "draws a picture, which comes in a later version",
    "--plot-throughput": "draws a picture, which comes in a later version",
    "--plot-timeline": "draws a picture, which comes in a later version",
    "--print-requests": "prints every request: see requests.jsonl in the run's folder",
    "--probe-request-rate": "sends probes beside the load, which comes in a later version",
    "--profile": _PROFILING,
    "--prompt-suffix": "changes the prompts of a file: change the file",
    "--random-batch-size": _LATER.format("random (embeddings)"),
    "--random-image-count": _LATER.format("image"),
    "--return-logprob": "is --logprobs N here",
    "--return-routed-experts": "makes answers longer than what is timed: send it with --extra-request-body",
    "--rust-worker-threads": "is --num-workers here",
    "--timeline-itl-thresholds": "draws a picture, which comes in a later version",
    "--timed-trace-sec-multiplier": "says how long a unit of time is: each format has its own here, and "
    "--time-scale stretches it",
    "--token-ids-logprob": "asks for chosen log probabilities: send it with --extra-request-body",
    "--top-logprobs-num": "is --logprobs N here",
    "--use-beam-search": "is not honoured: servers have given beam search up, or take it by --extra-body",
}

BACKENDS: Mapping[str, str] = {
    "sglang-native": "sglang",
    "sglang-oai": "openai",
    "sglang-oai-chat": "openai-chat",
    "vllm-chat": "openai-chat",
    "lmdeploy": "openai",
    "lmdeploy-chat": "openai-chat",
}
"""Names of theirs for what `--backend` has under another."""


def why_refused(option: str) -> str | None:
    """The reason a flag of theirs is not honoured, to stand behind its name; None for any other word."""
    known = _REFUSED.get(option)
    return known or next((reason for prefix, reason in _FAMILIES if option.startswith(prefix)), None)


def take_workload_name(given: dict[str, Any]) -> None:
    """Of --mooncake-workload, which says to SGLang's client what to download: here a file says it."""
    name = given.pop("mooncake_workload", None)
    if name is not None and given.get("dataset_path") is None:
        raise ConfigError(
            "--mooncake-workload downloads a trace: prefixlab trace fetch does, and --dataset-path names the "
            "file"
        )


def add_peer_flags(parser: argparse.ArgumentParser) -> None:
    """Offer what is spelt otherwise, and what is so anyway."""
    group = parser.add_argument_group("as vLLM's and SGLang's clients spell it")
    for flag, (name, value, meaning) in SPELT_OTHERWISE.items():
        group.add_argument(
            flag, dest=name, action="store_const", const=value, default=argparse.SUPPRESS, help=meaning
        )
    for flag, reason in ANYWAY.items():
        group.add_argument(
            flag, action=_Nothing, nargs=0, default=argparse.SUPPRESS, help=f"changes nothing: {reason}"
        )
    group.add_argument(
        "--tokenizer-mode",
        action=_Nothing,
        choices=TOKENIZER_MODES,
        default=argparse.SUPPRESS,
        help="changes nothing: --tokenizer is always read as Hugging Face's",
    )
    group.add_argument(
        "--mooncake-workload",
        metavar="NAME",
        default=argparse.SUPPRESS,
        help="changes nothing where --dataset-path names that trace, which prefixlab trace fetch gets",
    )
    group.add_argument(
        "--mooncake-num-rounds",
        action=_Nothing,
        type=_one_round,
        metavar="1",
        default=argparse.SUPPRESS,
        help="changes nothing: a trace's requests are sent once each; bench sessions has rounds",
    )


def _one_round(text: str) -> str:
    if text != "1":
        raise argparse.ArgumentTypeError(
            f"{text}: a trace's requests are sent once each; prefixlab bench sessions has rounds"
        )
    return text


class _Nothing(argparse.Action):
    """Leaves no trace in the namespace: nothing reads it."""

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        return None
