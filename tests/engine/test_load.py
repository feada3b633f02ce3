"""From settings to an engine: what follows from both, and what contradicts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from prefixlab.core.clock import VirtualClock
from prefixlab.core.errors import ConfigError, EngineError
from prefixlab.core.text.byte_tokenizer import ByteTokenizer
from prefixlab.engine import load
from prefixlab.engine.config import EngineConfig
from prefixlab.engine.load import LoadedEngine, load_engine
from prefixlab.engine.model_config import parse_model_config
from prefixlab.engine.shapes import SHAPES
from prefixlab.engine.weights import checkpoint_parts
from tests.engine.test_tokenizer import write_tokenizer

FIELDS: dict[str, Any] = {
    "model_type": "qwen2",
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "torch_dtype": "bfloat16",
    "eos_token_id": 9,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint with tokenizer, as people download them."""
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(FIELDS))
    generator = torch.Generator().manual_seed(0)
    parts = checkpoint_parts(parse_model_config(FIELDS, "test"))
    save_file(
        {name: torch.randn(part.shape, generator=generator).bfloat16() for name, part in parts.items()},
        folder / "model.safetensors",
    )
    return write_tokenizer(folder)


def load_with(num_pages: int | None = 16, **settings: Any) -> LoadedEngine:
    return load_engine(
        EngineConfig(**settings),
        page_size=16,
        num_pages=num_pages,
        max_running_requests=4,
        clock=VirtualClock(),
    )


def test_tiny_ships_whole() -> None:
    engine = load_with()
    assert (engine.model_name, engine.weights, engine.dtype) == ("tiny", "dummy", "float32")
    assert engine.model == SHAPES["tiny"]
    assert isinstance(engine.tokenizer, ByteTokenizer)
    assert engine.tokenizer.vocab_size == engine.runner.vocab_size == 4096
    assert engine.eos_token_ids == engine.tokenizer.eos_token_ids
    assert (engine.num_pages, engine.page_size, engine.max_model_len) == (16, 16, SHAPES["tiny"].max_len)
    for part in ("tiny", "7.5M", "dummy", "float32", "seed 0", "16 KV pages of 16 tokens"):
        assert part in engine.describe()


def test_a_folder_brings_weights_tokenizer_type_and_stop_ids(folder: Path) -> None:
    engine = load_with(model=str(folder))
    assert (engine.model_name, engine.weights, engine.dtype) == ("my-model", "safetensors", "bfloat16")
    assert engine.max_model_len == 256
    assert engine.eos_token_ids == {9, 2}
    assert engine.tokenizer.decode(engine.tokenizer.encode("the cat")) == "the cat"
    assert load_with(model=str(folder), dtype="float32", max_model_len=99).runner.pool.dtype == torch.float32


def test_dummy_weights_need_only_a_config(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "tokenizer.json").unlink()
    with pytest.raises(EngineError, match=r"no tokenizer\.json"):
        load_with(model=str(folder), load_format="dummy")
    engine = load_with(model=str(folder), load_format="dummy", tokenizer="byte")
    assert (engine.weights, engine.tokenizer.vocab_size) == ("dummy", 400)
    with pytest.raises(EngineError, match=r"model\.safetensors"):
        load_with(model=str(folder), tokenizer="byte")


def test_another_folders_tokenizer_can_be_named_if_the_model_knows_its_ids(
    folder: Path, tmp_path: Path
) -> None:
    engine = load_with(tokenizer=str(folder))
    assert engine.tokenizer.encode("<|im_start|>") == [1]
    assert engine.eos_token_ids == {2, 9}
    small = tmp_path / "small"
    small.mkdir()
    (small / "config.json").write_text(json.dumps({**FIELDS, "vocab_size": 20}))
    with pytest.raises(ConfigError, match="276 ids, the model 20"):
        load_with(model=str(small), load_format="dummy", tokenizer=str(folder))


@pytest.mark.parametrize(
    ("settings", "error", "named"),
    [
        ({"model": "Qwen3-0.6B"}, ConfigError, "--load-format dummy"),
        ({"load_format": "safetensors"}, ConfigError, "tiny"),
        ({"revision": "main"}, ConfigError, "--revision"),
        ({"model": "/no/such/folder"}, EngineError, r"/no/such/folder.*built-in shapes: tiny"),
        ({"max_model_len": 1 << 20}, ConfigError, "--max-model-len"),
    ],
)
def test_settings_that_contradict_the_model_are_refused(
    settings: dict[str, Any], error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=named):
        load_with(**settings)


def test_a_model_beyond_free_memory_says_what_it_needs_and_what_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(load, "free_memory_bytes", lambda: 10_000_000)
    with pytest.raises(EngineError, match=r"need 29,900,288 bytes in float32, and 10,000,000 bytes"):
        load_with()


def test_pages_come_from_a_budget_or_from_what_requests_could_fill(monkeypatch: pytest.MonkeyPatch) -> None:
    page_bytes = 16 * SHAPES["tiny"].kv_bytes_per_token("float32")
    assert load_with(num_pages=None, kv_memory_bytes=10 * page_bytes + 1).num_pages == 10
    monkeypatch.setattr(load, "free_memory_bytes", lambda: 1 << 40)
    assert load_with(num_pages=None, max_model_len=100).num_pages == 4 * 7


def test_the_seed_makes_the_weights() -> None:
    def embedding(seed: int) -> torch.Tensor:
        return load_with(seed=seed, max_model_len=32).runner._model.embedding

    assert torch.equal(embedding(1), embedding(1))
    assert not torch.equal(embedding(1), embedding(2))


def test_a_known_shape_runs_on_dummy_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer layers, since it is the shape that is tested: heads, head_dim, bfloat16, byte tokenizer."""
    small = replace(SHAPES["Qwen3-0.6B"], num_layers=1, vocab_size=5000)
    monkeypatch.setitem(SHAPES, "Qwen3-0.6B", small)
    engine = load_with(model="Qwen3-0.6B", load_format="dummy", max_model_len=64)
    assert (engine.dtype, engine.weights, engine.tokenizer.vocab_size) == ("bfloat16", "dummy", 5000)
    assert "Qwen3-0.6B (qwen3" in engine.describe()
