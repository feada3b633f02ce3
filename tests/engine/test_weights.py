"""Weights from files and from seeds: everything is there, in its place, or an error names what is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from prefixlab.core.errors import EngineError
from prefixlab.engine.hub import locate
from prefixlab.engine.model_config import ModelConfig
from prefixlab.engine.models.decoder import parameter_shapes
from prefixlab.engine.weights import INDEX_NAME, checkpoint_parts, dummy_weights, load_weights
from tests.engine.harness import SMALL, Table, make_runner, random_tokens

BIASED = replace(
    SMALL, architecture="llama", qkv_bias=True, output_bias=True, qk_norm=False, tied_embeddings=False
)


def checkpoint(config: ModelConfig) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(part.shape, generator=generator) for name, part in checkpoint_parts(config).items()
    }


def save_sharded(folder: Path, tensors: dict[str, torch.Tensor], num_files: int = 3) -> None:
    names = sorted(tensors)
    files = {name: f"model-{i % num_files}.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in names if files[name] == file}, folder / file)
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": files}))


@pytest.mark.parametrize("config", [SMALL, BIASED], ids=["qwen3", "biased"])
@pytest.mark.parametrize("sharded", [False, True])
def test_every_tensor_of_the_file_stands_in_its_rows(
    config: ModelConfig, sharded: bool, tmp_path: Path
) -> None:
    tensors = checkpoint(config)
    if sharded:
        save_sharded(tmp_path, tensors)
    else:
        save_file(tensors, tmp_path / "model.safetensors")
    weights = load_weights(tmp_path, config, torch.float32)
    assert {name: tuple(weight.shape) for name, weight in weights.items()} == parameter_shapes(config)
    covered = 0
    for name, part in checkpoint_parts(config).items():
        rows = weights[part.parameter][part.first_row : part.first_row + part.shape[0]]
        assert torch.equal(rows, tensors[name]), name
        covered += rows.numel()
    assert covered == sum(weight.numel() for weight in weights.values()), "no row of ours is left unset"


def test_weights_are_cast_to_the_type_asked_for(tmp_path: Path) -> None:
    tensors = {name: tensor.half() for name, tensor in checkpoint(SMALL).items()}
    save_file(tensors, tmp_path / "model.safetensors")
    weights = load_weights(tmp_path, SMALL, torch.bfloat16)
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert torch.equal(weights["norm"], tensors["model.norm.weight"].bfloat16())


def without_one(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["model.layers.1.mlp.up_proj.weight"]


def with_another(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.0.self_attn.sinks"] = torch.ones(4)


def with_one_transposed(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.0.mlp.down_proj.weight"] = tensors[
        "model.layers.0.mlp.down_proj.weight"
    ].T.contiguous()


def with_one_in_integers(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int8)


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (without_one, r"lacks.*model\.layers\.1\.mlp\.up_proj\.weight"),
        (with_another, r"no place for.*model\.layers\.0\.self_attn\.sinks"),
        (with_one_transposed, r"down_proj\.weight has shape \(64, 48\).*needs \(48, 64\)"),
        (with_one_in_integers, r"model\.norm\.weight is quantised.*int8"),
    ],
)
def test_a_tensor_missing_unknown_misshaped_or_quantised_is_named(
    spoil: Callable[[dict[str, torch.Tensor]], None], named: str, tmp_path: Path
) -> None:
    tensors = checkpoint(SMALL)
    spoil(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(EngineError, match=named):
        load_weights(tmp_path, SMALL, torch.float32)


def test_tensors_that_say_nothing_new_are_passed_over(tmp_path: Path) -> None:
    tensors = checkpoint(SMALL)
    tensors["lm_head.weight"] = torch.zeros(300, 48)  # the embeddings are tied
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(tensors, tmp_path / "model.safetensors")
    load_weights(tmp_path, SMALL, torch.float32)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"lacks model\.safetensors"):
        load_weights(tmp_path, SMALL, torch.float32)
    save_sharded(tmp_path, checkpoint(SMALL))
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(EngineError, match=r"lacks model-1\.safetensors"):
        load_weights(tmp_path, SMALL, torch.float32)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"not a safetensors file at all")
    with pytest.raises(EngineError, match=r"model\.safetensors cannot be read"):
        load_weights(tmp_path, SMALL, torch.float32)
    (tmp_path / INDEX_NAME).write_text("{}")
    with pytest.raises(EngineError, match="index of weights"):
        load_weights(tmp_path, SMALL, torch.float32)


def test_a_folder_is_found_and_a_hub_id_is_looked_up_in_the_local_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline, a hub id is served from the hub's cache, whose layout this test writes."""
    assert locate(str(tmp_path), with_weights=True) == tmp_path
    with pytest.raises(EngineError, match="--revision main"):
        locate(str(tmp_path), "main", with_weights=True)
    with pytest.raises(EngineError, match="no folder /no/such/place"):
        locate("/no/such/place", with_weights=True)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(EngineError, match=r"org/model.*local cache"):
        locate("org/model", with_weights=True)
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--org--model" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    refs = tmp_path / "models--org--model" / "refs"
    refs.mkdir()
    (refs / "main").write_text(commit)
    assert locate("org/model", with_weights=False) == snapshot
    assert locate("org/model", "main", with_weights=False) == snapshot
    with pytest.raises(EngineError, match="org/model"):
        locate("org/model", "no-such-branch", with_weights=False)


def test_dummy_weights_follow_their_seed_and_nothing_else() -> None:
    first, again = dummy_weights(SMALL, torch.float32, 1), dummy_weights(SMALL, torch.float32, 1)
    other, rounded = dummy_weights(SMALL, torch.float32, 2), dummy_weights(SMALL, torch.bfloat16, 1)
    assert {name: tuple(weight.shape) for name, weight in first.items()} == parameter_shapes(SMALL)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["layers.0.qkv"], other["layers.0.qkv"])
    assert not torch.equal(first["layers.0.qkv"], first["layers.1.qkv"])
    assert all(torch.equal(first[name].bfloat16(), rounded[name]) for name in first)


def test_dummy_queries_are_large_so_that_attention_chooses() -> None:
    with_norm = dummy_weights(SMALL, torch.float32, 1)
    assert (with_norm["layers.0.q_norm"] / with_norm["layers.0.k_norm"]).unique().tolist() == [2.5]
    without = dummy_weights(BIASED, torch.float32, 1)["layers.0.qkv"]
    query, key, _ = without.split([64, 32, 32])
    assert (query.std() / key.std()).item() == pytest.approx(2.5, rel=0.1)


@pytest.mark.parametrize(
    "config", [SMALL, BIASED, replace(SMALL, num_layers=12)], ids=["small", "biased", "deep"]
)
def test_dummy_weights_make_a_model_worth_testing(config: ModelConfig) -> None:
    """Logits spread, tokens vary over prompts, and the likeliest stands clear of the next."""
    runner = make_runner(config)
    logits = torch.stack(
        [runner.logits(Table.of(runner).batch((0, 0, random_tokens(30, seed))))[-1] for seed in range(40)]
    )
    assert 1.5 < logits.std() < 6.0
    best, second = logits.topk(2).values.unbind(1)
    assert (best - second).median() > 0.05
    assert len(set(logits.argmax(dim=1).tolist())) > 20


@pytest.mark.parametrize("with_weights", [False, True])
def test_a_hub_id_fetches_weights_only_where_they_are_wanted(
    with_weights: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str | None, list[str]]] = []

    def download(model: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((model, revision, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert locate("org/model", "v2", with_weights=with_weights) == tmp_path
    ((model, revision, patterns),) = asked
    assert (model, revision) == ("org/model", "v2")
    assert ("*.safetensors" in patterns) == with_weights
    assert {"*.json", "*.jinja"} <= set(patterns)
