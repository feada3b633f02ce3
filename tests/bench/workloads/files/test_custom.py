from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prefixlab.bench.config.dataset import DatasetConfig
from prefixlab.bench.workloads.files.custom import Row, choose_rows, content_of, read_rows
from prefixlab.core.errors import ConfigError
from prefixlab.core.text.byte_tokenizer import ByteTokenizer

MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]


def write(folder: Path, *lines: Any) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def config(path: Path, **fields: Any) -> DatasetConfig:
    return DatasetConfig(dataset_name="custom", dataset_path=str(path), **fields)


def test_prompts_token_ids_and_conversations_are_read(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {"prompt": "one", "output_tokens": 5, "category": "x"},
        "",
        {"prompt": [1, 2, 3]},
        {"messages": MESSAGES, "output_tokens": 7},
    )
    assert read_rows(path, None) == [
        Row(5, text="one"),
        Row(256, token_ids=(1, 2, 3)),
        Row(7, messages=tuple(MESSAGES)),
    ]
    assert [row.num_output_tokens for row in read_rows(path, 9)] == [9, 9, 9]


@pytest.mark.parametrize(
    ("line", "output_len", "complaint"),
    [
        ("{", None, "line 2: that is no JSON$"),
        ("[]", None, "line 2: that is no JSON object with"),
        ({"prompt": 5}, None, 'line 2: "prompt" must be text'),
        ({"prompt": [1, "x"]}, None, 'line 2: "prompt" must be text'),
        ({"prompt": "x", "output_tokens": "y"}, None, '"output_tokens" must be a whole number'),
        ({"text": "hi"}, None, 'line 2: one of "prompt" and "messages"'),
        ({"prompt": "hi", "messages": MESSAGES}, None, "line 2: one of"),
        ({"prompt": ""}, None, "line 2: there is nothing to ask"),
        ({"messages": []}, None, "line 2: there is nothing to ask"),
        ({"prompt": "hi", "output_tokens": 0}, None, "line 2: output_tokens must be at least 1"),
        ({"prompt": "hi"}, -1, "line 2 has no output_tokens"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(
    tmp_path: Path, line: Any, output_len: int | None, complaint: str
) -> None:
    path = write(tmp_path, {"prompt": "good", "output_tokens": 1}, line)
    with pytest.raises(ConfigError, match=complaint):
        read_rows(path, output_len)


def test_a_file_without_rows_or_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no row"):
        read_rows(write(tmp_path, ""), None)
    with pytest.raises(ConfigError, match="missing cannot be read"):
        read_rows(tmp_path / "missing", None)


def rows(count: int) -> list[Row]:
    return [Row(1, text=str(number)) for number in range(count)]


def test_rows_are_shuffled_by_the_seed_unless_told_otherwise(tmp_path: Path) -> None:
    path = write(tmp_path, {"prompt": "x"})
    shuffled = choose_rows(rows(20), config(path))
    assert shuffled != rows(20) and sorted(shuffled, key=lambda r: int(r.text or 0)) == rows(20)
    assert shuffled == choose_rows(rows(20), config(path))
    assert shuffled != choose_rows(rows(20), config(path, seed=1))
    assert choose_rows(rows(20), config(path, shuffle=False, num_prompts=3)) == rows(3)


def test_too_few_rows_are_repeated_unless_told_otherwise(tmp_path: Path) -> None:
    path = write(tmp_path, {"prompt": "x"})
    with pytest.raises(ConfigError, match="has 2 rows, and --no-oversample repeats none"):
        choose_rows(rows(2), config(path, num_prompts=5, oversample=False))
    repeated = choose_rows(rows(2), config(path, num_prompts=5, shuffle=False))
    assert [row.text for row in repeated] == ["0", "1", "0", "1", "0"]


def test_a_row_goes_as_the_api_takes_it() -> None:
    tokenizer = ByteTokenizer()
    text = Row(1, text="hi")
    asked = content_of(text, chat=True, template=False, tokenizer=None)
    assert asked.messages == ({"role": "user", "content": "hi"},) and asked.num_tokens == 0
    plain = content_of(text, chat=False, template=False, tokenizer=None)
    assert (plain.text, plain.num_tokens) == ("hi", 0)
    counted = content_of(text, chat=False, template=False, tokenizer=tokenizer)
    assert counted.num_tokens == 2
    templated = content_of(text, chat=False, template=True, tokenizer=tokenizer)
    assert templated.text == tokenizer.apply_chat_template([{"role": "user", "content": "hi"}])
    talk = Row(1, messages=tuple(MESSAGES))
    assert content_of(talk, chat=True, template=False, tokenizer=None).messages == tuple(MESSAGES)
    rendered = content_of(talk, chat=False, template=False, tokenizer=tokenizer)
    assert rendered.text == tokenizer.apply_chat_template(MESSAGES)
    ids = content_of(Row(1, token_ids=(4, 5)), chat=False, template=False, tokenizer=None)
    assert ids.token_ids is not None and ids.token_ids.tolist() == [4, 5] and ids.num_tokens == 2


@pytest.mark.parametrize(
    ("row", "chat", "template", "complaint"),
    [
        (Row(1, token_ids=(1,)), True, False, "chat takes messages"),
        (Row(1, messages=tuple(MESSAGES)), False, False, "--backend openai-chat"),
        (Row(1, text="hi"), False, True, "--chat-template needs the model's --tokenizer"),
    ],
)
def test_a_row_the_api_cannot_carry_is_refused(row: Row, chat: bool, template: bool, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        content_of(row, chat=chat, template=template, tokenizer=None)
