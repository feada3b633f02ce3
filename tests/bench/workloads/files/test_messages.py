from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prefixlab.bench.workloads.files.custom import Row
from prefixlab.bench.workloads.files.messages import read_messages
from prefixlab.core.errors import ConfigError
from prefixlab.core.text.byte_tokenizer import ByteTokenizer

TOKENIZER = ByteTokenizer(260)
ASKED = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
ANSWER = {"role": "assistant", "content": "hello"}


def write(folder: Path, *lines: Any) -> Path:
    path = folder / "requests.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_lines_say_how_long_answers_are_and_flags_overrule_them(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {"messages": ASKED, "max_tokens": 5},
        "",
        {"messages": ASKED, "max_completion_tokens": 6},
        {"messages": [*ASKED, ANSWER]},
        {"messages": ASKED},
    )
    rows, notes = read_messages(path, TOKENIZER, None, None)
    assert rows == [Row(length, messages=tuple(ASKED)) for length in (5, 6, 5, 256)]
    assert notes == ()
    assert [row.num_output_tokens for row in read_messages(path, None, 9, None)[0]] == [9] * 4


def test_several_turns_of_the_user_are_one_conversation(tmp_path: Path) -> None:
    talk = [*ASKED, ANSWER, {"role": "user", "content": "and now?"}]
    ((row,), _) = read_messages(write(tmp_path, {"messages": talk}), None, None, None)
    assert row.messages == tuple(talk)


def test_what_is_not_sent_is_told(tmp_path: Path) -> None:
    path = write(tmp_path, {"messages": ASKED, "model": "m", "tools": []}, {"messages": ASKED * 40})
    rows, notes = read_messages(path, TOKENIZER, 4, 400)
    assert len(rows) == 1
    assert notes == (
        "conversations left out: 1 longer than 400 tokens",
        "fields of the file's lines that are not sent: model, tools",
    )


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "line 2: "),
        ({"prompt": "x"}, "line 2: .*missing required field `messages`"),
        ({"messages": [{"role": "usr", "content": "x"}]}, "line 2: the role of a message is one of"),
        ({"messages": [ANSWER]}, "line 2: there is nothing to ask"),
        ({"messages": []}, "line 2: there is nothing to ask"),
        ({"messages": ASKED, "max_tokens": 0}, "line 2: max_tokens must be at least 1"),
    ],
)
def test_broken_lines_are_named(tmp_path: Path, line: Any, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        read_messages(write(tmp_path, {"messages": ASKED}, line), None, None, None)


def test_an_empty_file_holds_no_row(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no row"):
        read_messages(write(tmp_path), None, None, None)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_messages(tmp_path / "gone", None, None, None)
