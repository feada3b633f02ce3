from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixlab.bench.workloads.files.custom import Row
from prefixlab.bench.workloads.files.sharegpt import read_conversations, read_sharegpt
from prefixlab.core.errors import ConfigError
from prefixlab.core.text.byte_tokenizer import ByteTokenizer

TOKENIZER = ByteTokenizer(260)
"""Without words: a token for each byte."""


def said(*turns: str, first: str = "human") -> dict[str, Any]:
    whos = (first, "gpt") if first == "human" else (first, "human", "gpt")
    return {
        "id": "x",
        "conversations": [
            {"from": whos[place] if place < len(whos) else whos[-2 + (place - len(whos)) % 2], "value": text}
            for place, text in enumerate(turns)
        ],
    }


def write(folder: Path, *conversations: Any, as_lines: bool = False) -> Path:
    path = folder / "sharegpt.json"
    lines = [json.dumps(conversation) for conversation in conversations]
    path.write_text("\n".join(lines) if as_lines else f"[{', '.join(lines)}]")
    return path


@pytest.mark.parametrize("as_lines", [False, True])
def test_the_first_thing_a_human_said_is_asked_for_as_long_as_the_reply(
    tmp_path: Path, as_lines: bool
) -> None:
    path = write(
        tmp_path,
        said("what is it?", "a test", "why?", "so"),
        said("be brief", "ask me", "well then", first="system"),
        as_lines=as_lines,
    )
    rows, notes = read_sharegpt(path, TOKENIZER, None, None)
    assert rows == [Row(6, text="what is it?"), Row(9, text="ask me")]
    assert notes == ()


def test_too_short_too_long_and_unanswered_are_left_out_and_told(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        said("hi?", "hello there"),
        said("hello there", "hi?"),
        said("hello there", "x" * 90),
        said("no answer"),
        said("", "what?"),
        {"id": "y", "conversations": [{"from": "gpt", "value": "on my own"}]},
        said("hello there", "hello"),
    )
    rows, (note,) = read_sharegpt(path, TOKENIZER, None, 100)
    assert rows == [Row(5, text="hello there")]
    for part in (
        "2 with fewer than 4 tokens",
        "1 longer than 100 tokens",
        "1 without a reply",
        "2 in which no human says anything",
    ):
        assert part in note


def test_what_needs_no_tokenizer_is_left_out_and_told_without_one(tmp_path: Path) -> None:
    path = write(tmp_path, said("hello there", "hi"), said("no answer"), said("?", "what?"))
    rows, notes = read_sharegpt(path, None, 8, None)
    assert rows == [Row(8, text="hello there")]
    assert notes == (
        "conversations left out: 1 without a reply, 1 with fewer than 4 tokens of prompt or output",
    )


def test_a_file_that_is_not_there_is_named_before_a_tokenizer_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nope\.json cannot be read"):
        read_sharegpt(tmp_path / "nope.json", None, None, None)


def test_without_a_tokenizer_the_length_must_be_given(tmp_path: Path) -> None:
    path = write(tmp_path, said("hello there", "hello"), said("unanswered"))
    with pytest.raises(
        ConfigError, match=r"give --tokenizer .*'byte' to count bytes.*, or --sharegpt-output-len for all"
    ):
        read_sharegpt(path, None, None, None)
    with pytest.raises(ConfigError, match="--sharegpt-context-len takes a tokenizer"):
        read_sharegpt(path, None, 7, 100)
    assert [row.num_output_tokens for row in read_sharegpt(path, None, 7, None)[0]] == [7]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "holds no conversation"),
        ("[]", "holds no conversation"),
        ("[{]", "sharegpt.json is no JSON"),
        ('[{"conversations": [{"from": "human"}]}]', r"conversation 1: .*missing required field `value`"),
        ('{"conversations": []}\n{"conversations": 5}', "line 2: "),
    ],
)
def test_broken_files_are_named_with_the_place(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "sharegpt.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        read_sharegpt(path, None, 7, None)


@settings(max_examples=60, deadline=None)
@given(turns=st.lists(st.tuples(st.text(), st.none() | st.text()), max_size=5))
def test_every_turn_of_a_conversation_is_read(
    tmp_path_factory: pytest.TempPathFactory, turns: list[tuple[str, str | None]]
) -> None:
    spoken = []
    for human, reply in turns:
        spoken.append({"from": "human", "value": human})
        spoken += [] if reply is None else [{"from": "gpt", "value": reply}]
    path = write(tmp_path_factory.mktemp("x"), {"conversations": spoken})
    (found,) = read_conversations(path)
    assert list(found.turns) == turns
