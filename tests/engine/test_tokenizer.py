"""Hugging Face tokenizers and chat templates, in folders these tests write: like transformers, or refused."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from prefixlab.core.errors import EngineError, InvalidRequestError
from prefixlab.engine.tokenizer import HFTokenizer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of other libraries, while they are imported
    from transformers import PreTrainedTokenizerFast

CHATML = (
    "{%- for message in messages %}\n"
    "    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n"
    "    {{- '<|im_start|>assistant\\n' }}\n"
    "{%- endif %}\n"
)
DEMANDING = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{{ raise_exception('no system turn <here>') }}{% endif %}"
    "{% for message in messages %}{% if loop.index > 2 %}{% break %}{% endif %}"
    "[{{ message | tojson }}]{% endfor %}"
)
INDENTED = (
    "{% for message in messages %}\n"
    "    {% if message.content %}\n"
    "{{ message.role }}: {{ message.content }}\n"
    "    {% endif %}\n"
    "{% endfor %}\n"
)
USER: dict[str, object] = {"role": "user", "content": "Grüße & <b>"}


def write_tokenizer(folder: Path, **settings: Any) -> Path:
    """A byte-level BPE of a few merges with ChatML's special tokens, that would add one if it were let."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat sat on the mat", "the other cats sat there"] * 5, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    fields = {"bos_token": None, "eos_token": {"content": "<|im_end|>"}, "chat_template": CHATML, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))
    return folder


@pytest.fixture(scope="module")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> HFTokenizer:
    return HFTokenizer(write_tokenizer(tmp_path_factory.mktemp("chatml")))


@settings(deadline=None)
@given(text=st.text(st.characters(codec="utf-8")))
def test_text_survives_encoding_and_decoding(chatml: HFTokenizer, text: str) -> None:
    assert chatml.decode(chatml.encode(text), skip_special_tokens=False) == text


def test_special_tokens_are_not_added_but_read_where_spelt_out(chatml: HFTokenizer) -> None:
    ids = chatml.encode("<|im_start|>the cat")
    assert ids[0] == 1
    assert chatml.decode(ids) == "the cat"
    assert chatml.decode(ids, skip_special_tokens=False) == "<|im_start|>the cat"
    assert chatml.vocab_size > 256 + 3


def test_half_a_character_becomes_the_replacement_character(chatml: HFTokenizer) -> None:
    euro = chatml.encode("€")
    assert len(euro) == 3
    assert chatml.decode(euro[:2]) == "\ufffd"
    assert chatml.decode(euro) == "€"


@pytest.mark.parametrize("template", [CHATML, DEMANDING, INDENTED], ids=["chatml", "demanding", "indented"])
@pytest.mark.parametrize("place", ["config", "named", "file"])
def test_the_template_renders_as_transformers_renders_it(template: str, place: str, tmp_path: Path) -> None:
    named = [{"name": "tools", "template": "no"}, {"name": "default", "template": template}]
    inline = {"config": template, "named": named, "file": None}[place]
    write_tokenizer(tmp_path, chat_template=inline, bos_token="<|endoftext|>")
    if place == "file":
        (tmp_path / "chat_template.jinja").write_text(template)
    messages = [USER, {"role": "assistant", "content": "ok\n"}, {"role": "user", "content": ""}]
    theirs = PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"), bos_token="<|endoftext|>", chat_template=template
    )
    expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert HFTokenizer(tmp_path).apply_chat_template(messages) == expected


def test_text_parts_are_another_spelling_of_text(chatml: HFTokenizer) -> None:
    parts = [{"type": "text", "text": "Grüße"}, {"type": "text", "text": " & <b>"}]
    in_parts: dict[str, object] = {"role": "user", "content": parts}
    assert chatml.apply_chat_template([in_parts]) == chatml.apply_chat_template([USER])


@pytest.mark.parametrize(
    ("template", "messages", "named"),
    [
        (None, [USER], "no chat template"),
        (DEMANDING, [{"role": "system", "content": "x"}], "no system turn <here>"),
        (CHATML, [{"role": "user", "content": None}], "refuses"),
        (CHATML, [{"role": "user", "content": [{"type": "image_url"}]}], "parts of type text"),
        ("{{ messages.__class__.__mro__ }}", [USER], "refuses"),  # what the sandbox is for
    ],
)
def test_messages_the_template_cannot_render_are_refused(
    template: str | None, messages: list[dict[str, object]], named: str, tmp_path: Path
) -> None:
    tokenizer = HFTokenizer(write_tokenizer(tmp_path, chat_template=template))
    with pytest.raises(InvalidRequestError, match=named):
        tokenizer.apply_chat_template(messages)


def test_a_lone_surrogate_is_refused(chatml: HFTokenizer) -> None:
    with pytest.raises(InvalidRequestError, match="Unicode"):
        chatml.encode("a\ud800b")


def test_end_of_sequence_ids_come_from_the_generation_config_before_the_config(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    assert HFTokenizer(tmp_path).eos_token_ids == {2}
    (tmp_path / "config.json").write_text('{"eos_token_id": 7}')
    assert HFTokenizer(tmp_path).eos_token_ids == {2, 7}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [8, 9]}')
    assert HFTokenizer(tmp_path).eos_token_ids == {2, 8, 9}


def test_a_folder_without_a_readable_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"no tokenizer\.json"):
        HFTokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(EngineError, match=r"tokenizer\.json cannot be read"):
        HFTokenizer(tmp_path)
    write_tokenizer(tmp_path, chat_template="{% if %}")
    with pytest.raises(EngineError, match="chat template"):
        HFTokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(EngineError, match=r"tokenizer_config\.json"):
        HFTokenizer(tmp_path)
