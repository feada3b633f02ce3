"""The engine against Hugging Face transformers on the same weights, for every architecture it claims.

Each model is a small random one that transformers itself writes to a folder. Logits must agree within 1e-4
in float32, however the prompt comes in; greedy tokens must agree wherever the two likeliest logits differ by
more than 1e-3, and the others are counted and printed.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prefixlab.engine.model_config import read_model_config
from prefixlab.engine.runner import TorchRunner
from prefixlab.engine.weights import load_weights
from tests.engine.harness import Table, make_request, make_runner

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of other libraries, while they are imported
    import transformers

LOGIT_TOLERANCE = 1e-4
CLEAR_GAP = 1e-3

SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"rms_norm_eps": 1e-5}),
    "llama-3-rope-sharded": ("LlamaConfig", {"rope_parameters": LLAMA3_ROPE}),
    "llama-biases-tied": ("LlamaConfig", {"attention_bias": True, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2Config", {}),
    "qwen2-tied-one-kv-head": ("Qwen2Config", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "qwen3": ("Qwen3Config", {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen3-biases": ("Qwen3Config", {"head_dim": 8, "attention_bias": True}),
    "mistral": ("MistralConfig", {"sliding_window": None}),
    "mistral-head-dim-window": ("MistralConfig", {"sliding_window": 512, "head_dim": 24}),
}


@dataclass(frozen=True)
class Oracle:
    """A model of transformers, and the same one in a folder."""

    name: str
    theirs: Any
    folder: Path

    def logits(self, tokens: list[int]) -> torch.Tensor:
        """Shape (tokens, vocab): computed at once, without any cache."""
        with torch.inference_mode():
            logits: torch.Tensor = self.theirs(torch.tensor([tokens]), use_cache=False).logits[0]
        return logits

    def runner(self, **options: Any) -> TorchRunner:
        config = read_model_config(self.folder)
        return make_runner(config, weights=load_weights(self.folder, config, torch.float32), **options)

    def tokens(self, length: int, seed: int) -> list[int]:
        return np.random.default_rng(seed).integers(0, SIZES["vocab_size"], length).tolist()


@pytest.fixture(scope="module", params=MODELS)
def oracle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Oracle]:
    config_class, fields = MODELS[request.param]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(7)
        config = getattr(transformers, config_class)(**{**SIZES, **fields})
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                # As transformers makes them, biases are 0 and norms 1: a mix-up would not show.
                if name.endswith("bias"):
                    weight.normal_(0.0, 0.3)
                elif "norm" in name:
                    weight.uniform_(0.5, 1.5)
        folder = tmp_path_factory.mktemp(request.param)
        model.save_pretrained(folder, max_shard_size="100KB" if "sharded" in request.param else "1GB")
    assert (folder / "model.safetensors.index.json").exists() == ("sharded" in request.param)
    yield Oracle(request.param, model, folder)


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max().item() < LOGIT_TOLERANCE


@pytest.mark.parametrize("page_size", [1, 16])
def test_a_whole_prompt_has_the_oracles_logits(oracle: Oracle, page_size: int) -> None:
    runner = oracle.runner(page_size=page_size, num_pages=256)
    tokens = oracle.tokens(150, seed=1)
    assert_same(runner.logits(Table.of(runner).batch((0, 0, tokens))), oracle.logits(tokens))


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_a_prompt_in_chunks_has_the_oracles_logits(oracle: Oracle, chunk: int) -> None:
    runner = oracle.runner()
    table = Table.of(runner)
    tokens = oracle.tokens(100, seed=2)
    parts = [
        runner.logits(table.batch((0, start, tokens[start : start + chunk])))
        for start in range(0, len(tokens), chunk)
    ]
    assert_same(torch.cat(parts), oracle.logits(tokens))


def test_a_prompt_longer_than_a_block_of_queries_has_the_oracles_logits(
    oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefixlab.engine.attention.plan.QUERY_BLOCK", 32)
    runner = oracle.runner()
    table = Table.of(runner)
    tokens = oracle.tokens(200, seed=3)
    first = runner.logits(table.batch((0, 0, tokens[:90])))
    second = runner.logits(table.batch((0, 90, tokens[90:])))
    assert_same(torch.cat((first, second)), oracle.logits(tokens))


def test_a_prompt_on_another_ones_cached_prefix_has_the_oracles_logits(oracle: Oracle) -> None:
    runner = oracle.runner()
    table = Table.of(runner)
    shared, own = oracle.tokens(96, seed=4), oracle.tokens(40, seed=5)
    runner.logits(table.batch((0, 0, shared + oracle.tokens(20, seed=6))))
    table.share(0, 1, 96)
    ours = runner.logits(table.batch((1, 96, own)))
    assert_same(ours, oracle.logits(shared + own)[96:])


def test_rows_of_all_kinds_in_one_batch_have_the_oracles_logits(oracle: Oracle) -> None:
    runner = oracle.runner()
    table = Table.of(runner)
    lengths = [3, 17, 120, 50, 51, 64]
    prompts = [oracle.tokens(length, seed=10 + length) for length in lengths]
    # Rows 2 … 5 have all but their last token in the pages, row 1 a page, row 0 nothing.
    for row, known in ((1, 16), (2, 119), (3, 49), (4, 50), (5, 63)):
        runner.logits(table.batch((row, 0, prompts[row][:known])))
    starts = [0, 16, 119, 49, 50, 63]
    entries = [(row, start, prompts[row][start:]) for row, start in enumerate(starts)]
    ours = runner.logits(table.batch(*entries))
    theirs = [oracle.logits(prompt)[start:] for prompt, start in zip(prompts, starts, strict=True)]
    assert_same(ours, torch.cat(theirs))


def test_deterministic_mode_has_the_oracles_logits(oracle: Oracle) -> None:
    runner = oracle.runner(deterministic=True)
    table = Table.of(runner)
    tokens, other = oracle.tokens(90, seed=20), oracle.tokens(33, seed=21)
    first = runner.logits(table.batch((0, 0, tokens[:37]), (1, 0, other)))
    second = runner.logits(table.batch((0, 37, tokens[37:])))
    assert_same(torch.cat((first[:37], second)), oracle.logits(tokens))
    assert_same(first[37:], oracle.logits(other))


@pytest.mark.parametrize("batch_size", [1, 5])
def test_greedy_tokens_are_the_oracles_where_it_is_sure(oracle: Oracle, batch_size: int) -> None:
    """Prefill in chunks on a shared prefix, then decode together; judged by the oracle on our own output."""
    runner = oracle.runner()
    table = Table.of(runner)
    shared = oracle.tokens(32, seed=30)
    requests = [
        make_request(shared + oracle.tokens(5 + 9 * i, seed=31 + i), request_id=str(i))
        for i in range(batch_size)
    ]
    runner.run(table.batch((7, 0, shared)))
    for row, request in enumerate(requests):
        table.share(7, row, 32)
        middle = 32 + (request.num_prompt_tokens - 32) // 2
        prompt = request.prompt_token_ids.tolist()
        runner.run(table.batch((row, 32, prompt[32:middle]), requests=[request], samples=[False]))
        result = runner.run(table.batch((row, middle, prompt[middle:]), requests=[request]))
        request.output_token_ids.append(int(result.token_ids[0]))
    for _ in range(15):
        entries = [
            (row, request.num_tokens - 1, request.output_token_ids[-1:])
            for row, request in enumerate(requests)
        ]
        result = runner.run(table.batch(*entries, requests=requests))
        for request, token_id in zip(requests, result.token_ids.tolist(), strict=True):
            request.output_token_ids.append(token_id)

    num_tokens = num_ties = 0
    for request in requests:
        logits = oracle.logits(request.token_ids().tolist())[request.num_prompt_tokens - 1 : -1]
        best, second = logits.topk(2).values.unbind(1)
        sure = (best - second) > CLEAR_GAP
        ours = torch.tensor(request.output_token_ids)
        assert torch.equal(ours[sure], logits.argmax(dim=1)[sure])
        num_tokens += len(ours)
        num_ties += int((~sure).sum())
    print(f"{oracle.name}: {num_tokens} tokens, {num_ties} too close to call")
    assert num_ties < num_tokens / 4
    assert len({token for request in requests for token in request.output_token_ids}) > 1


def test_the_spelling_of_older_transformers_means_the_same(oracle: Oracle, tmp_path: Path) -> None:
    """Before version 5 rope_theta and rope_scaling stood at the top level, and dtype was torch_dtype."""
    fields = json.loads((oracle.folder / "config.json").read_text())
    rope = fields.pop("rope_parameters")
    fields["rope_theta"] = rope.pop("rope_theta")
    fields["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    fields["torch_dtype"] = fields.pop("dtype")
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert read_model_config(tmp_path) == read_model_config(oracle.folder)
