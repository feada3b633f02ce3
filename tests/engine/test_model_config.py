"""Shapes, what they cost, and that a config.json asking for more than we compute is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prefixlab.core.errors import ConfigError, EngineError
from prefixlab.engine.model_config import (
    Llama3RopeScaling,
    ModelConfig,
    check_max_model_len,
    parse_model_config,
    read_model_config,
)
from prefixlab.engine.models.decoder import parameter_shapes
from prefixlab.engine.shapes import SHAPES
from prefixlab.engine.weights import checkpoint_parts
from tests.engine.harness import SMALL

BASE: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 2048,
}


def parse(**fields: Any) -> ModelConfig:
    return parse_model_config({**BASE, **fields}, "config.json")


@pytest.mark.parametrize(
    ("name", "kv_bytes"),
    [
        ("Qwen3-0.6B", 114_688),
        ("Qwen3-1.7B", 114_688),
        ("Qwen3-4B", 147_456),
        ("Qwen3-8B", 147_456),
        ("Qwen3-14B", 163_840),
        ("Qwen3-32B", 262_144),
        ("Llama-3.1-8B", 131_072),
        ("Llama-3.1-70B", 327_680),
    ],
)
def test_kv_bytes_per_token_of_the_known_models_in_bfloat16(name: str, kv_bytes: int) -> None:
    assert SHAPES[name].kv_bytes_per_token("bfloat16") == kv_bytes
    assert SHAPES[name].kv_bytes_per_token("float32") == 2 * kv_bytes


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("Qwen3-0.6B", 0.596),
        ("Qwen3-1.7B", 1.721),
        ("Qwen3-4B", 4.022),
        ("Qwen3-8B", 8.191),
        ("Qwen3-14B", 14.768),
        ("Qwen3-32B", 32.762),
        ("Llama-3.1-8B", 8.030),
        ("Llama-3.1-70B", 70.554),
    ],
)
def test_parameters_of_the_known_models(name: str, billions: float) -> None:
    assert SHAPES[name].num_parameters / 1e9 == pytest.approx(billions, abs=0.001)


def test_tiny_has_a_few_million_parameters_and_ids_enough_for_a_benchmark() -> None:
    tiny = SHAPES["tiny"]
    assert 1e6 < tiny.num_parameters < 1e7
    assert tiny.vocab_size >= 4096
    assert tiny.max_len >= 70_000


@pytest.mark.parametrize("name", [*SHAPES, "biased"])
def test_the_cost_model_counts_the_weights_there_are(name: str) -> None:
    config = parse(attention_bias=True) if name == "biased" else SHAPES[name]

    def elements(shape: tuple[int, ...]) -> int:
        product = 1
        for size in shape:
            product *= size
        return product

    ours = sum(elements(shape) for shape in parameter_shapes(config).values())
    theirs = sum(elements(part.shape) for part in checkpoint_parts(config).values())
    assert config.num_parameters == ours == theirs
    assert config.weight_bytes("bfloat16") == 2 * ours


def test_flops_of_a_token_are_two_per_weight_of_a_product_and_four_per_visible_head_element() -> None:
    # One layer by hand: query and output 64², key and value 64 · 16 each, three feed-forward matrices.
    config = parse(num_hidden_layers=1, num_key_value_heads=1)
    products = 2 * 64 * 64 + 2 * 64 * 16 + 3 * 64 * 128
    assert config.flops_per_token(10, with_logits=False) == 2 * products + 4 * 10 * 64
    assert config.flops_per_token(10) - config.flops_per_token(10, with_logits=False) == 2 * 64 * 1000


def test_what_an_architecture_has_without_saying_so() -> None:
    llama = parse()
    assert (llama.num_kv_heads, llama.head_dim, llama.qkv_bias, llama.qk_norm) == (4, 16, False, False)
    assert (llama.tied_embeddings, llama.dtype, llama.rope_theta) == (False, "float32", 10_000.0)
    assert parse(model_type="qwen2").qkv_bias
    assert not parse(model_type="qwen2").output_bias
    qwen3 = parse(model_type="qwen3")
    assert qwen3.qk_norm
    assert qwen3.head_dim == 128
    assert parse(model_type="llama", attention_bias=True).output_bias
    assert not parse(model_type="mistral", attention_bias=True).qkv_bias


@pytest.mark.parametrize("spelling", ["torch_dtype", "dtype"])
def test_the_dtype_of_the_checkpoint(spelling: str) -> None:
    assert parse(**{spelling: "bfloat16"}).dtype == "bfloat16"
    assert parse(**{spelling: "float16"}).dtype == "float32"
    with pytest.raises(EngineError, match="float64"):
        parse(**{spelling: "float64"})


@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
def test_llama_3_rope_scaling_in_both_spellings(spelling: str) -> None:
    fields = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    if spelling == "rope_parameters":
        config = parse(rope_parameters={**fields, "rope_theta": 5e5})
    else:
        config = parse(rope_scaling=fields, rope_theta=5e5)
    assert config.rope_scaling == Llama3RopeScaling(8.0, 1.0, 4.0, 8192)
    assert config.rope_theta == 5e5
    del fields["high_freq_factor"]
    with pytest.raises(EngineError, match="high_freq_factor"):
        parse(rope_scaling=fields)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"model_type": "mamba"}, "mamba"),
        ({"model_type": None}, "None"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "longrope"),
        (
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "partial_rotary_factor",
        ),
        ({"quantization_config": {"quant_method": "awq"}}, "awq"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_size": None}, "hidden_size"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"num_hidden_layers": 0}, "num_layers"),
        ({"num_key_value_heads": 3}, "3 key-value heads"),
        ({"head_dim": 15}, "head_dim"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(EngineError, match=named):
        parse(**fields)


def test_a_folder_without_a_readable_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"no config\.json"):
        read_model_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(EngineError, match=r"config\.json cannot be read"):
        read_model_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(EngineError, match="JSON object"):
        read_model_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(BASE))
    assert read_model_config(tmp_path) == parse()


@pytest.mark.parametrize(
    ("fields", "window"),
    [
        ({"model_type": "mistral", "sliding_window": 1024}, 1024),
        ({"model_type": "mistral", "sliding_window": None}, None),
        ({"model_type": "qwen2", "sliding_window": 1024}, None),
        ({"model_type": "qwen2", "sliding_window": 1024, "use_sliding_window": True}, None),
        (
            {
                "model_type": "qwen2",
                "sliding_window": 1024,
                "use_sliding_window": True,
                "max_window_layers": 1,
            },
            1024,
        ),
        (
            {
                "model_type": "qwen3",
                "sliding_window": 1024,
                "use_sliding_window": True,
                "layer_types": ["full_attention", "sliding_attention"],
            },
            1024,
        ),
        (
            {
                "model_type": "qwen3",
                "sliding_window": 1024,
                "use_sliding_window": True,
                "layer_types": ["full_attention", "full_attention"],
            },
            None,
        ),
    ],
)
def test_a_sliding_window_counts_where_a_layer_uses_it(fields: dict[str, Any], window: int | None) -> None:
    assert parse(**fields).sliding_window == window


def test_a_context_beyond_the_sliding_window_is_refused_and_one_within_it_is_served() -> None:
    config = parse(model_type="mistral", sliding_window=1024)
    with pytest.raises(ConfigError, match=r"sliding window of 1024.*--max-model-len 1024"):
        check_max_model_len(config, None)
    assert check_max_model_len(config, 1024) == 1024


def test_a_context_beyond_the_models_positions_is_refused() -> None:
    assert check_max_model_len(SMALL, None) == SMALL.max_len
    assert check_max_model_len(SMALL, 100) == 100
    with pytest.raises(ConfigError, match="--max-model-len 513"):
        check_max_model_len(SMALL, 513)
