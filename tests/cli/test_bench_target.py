from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from prefixlab.bench.workloads.tokens import TokenStream
from prefixlab.bench.workloads.wording import ChatWording
from prefixlab.cli.bench_target import load_tokenizer, target_config
from prefixlab.core.errors import EngineError
from prefixlab.core.text.byte_tokenizer import ByteTokenizer
from prefixlab.engine.shapes import SHAPES

TEMPLATE = "{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}<|assistant|>"


@pytest.fixture(scope="module")
def bpe_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer as models have them, trained here: its tokens do fuse with one another."""
    folder = tmp_path_factory.mktemp("bpe")
    made = ByteTokenizer()
    corpus = [made.decode([token, token + 7, token + 31]) for token in range(300, 1500)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|user|>", "<|end|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": TEMPLATE, "eos_token": "<|end|>"})
    )
    return folder


def test_chat_is_exact_with_a_byte_level_bpe_tokenizer(bpe_folder: Path) -> None:
    tokenizer = load_tokenizer(str(bpe_folder), None)
    wording = ChatWording(tokenizer)
    assert len(wording.vocabulary) > 100
    assert (wording.num_head_tokens, wording.num_tail_tokens) == (1, 2)
    for seed in range(20):
        content = TokenStream(wording.vocabulary, seed).draw(400)
        prompt = wording.prompt(content)
        assert len(prompt) == 403


@pytest.mark.parametrize("name", ["byte", *SHAPES])
def test_built_in_models_use_the_byte_tokenizer(name: str) -> None:
    assert load_tokenizer(name, 5000).vocab_size == 5000


def test_a_tokenizer_that_is_nowhere_is_named() -> None:
    with pytest.raises(EngineError, match="/nowhere"):
        load_tokenizer("/nowhere", None)


def test_a_key_of_the_environment_is_for_servers_and_no_hindrance_in_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    assert target_config(argparse.Namespace(backend="in-process")).api_key is None
    assert target_config(argparse.Namespace(base_url="http://h")).api_key == "sesame"
