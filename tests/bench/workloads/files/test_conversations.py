from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prefixlab.bench.config.dataset import DatasetConfig
from prefixlab.bench.config.serve import ServeConfig
from prefixlab.bench.config.sessions import SessionsConfig
from prefixlab.bench.config.trace import TraceConfig
from prefixlab.bench.runs.point import outline
from prefixlab.bench.workloads.files.conversations import holds_conversations, talks_workload
from prefixlab.bench.workloads.generators.sessions import ThinkTime
from prefixlab.bench.workloads.sketch import NOBODY
from prefixlab.bench.workloads.workload import Workload
from prefixlab.core.errors import ConfigError

AT_ONCE = ThinkTime(0.0)


def sharegpt(path: Path) -> Path:
    talks: list[list[tuple[str, str]]] = [
        [("human", "hello"), ("gpt", "hi"), ("human", "and?"), ("gpt", "yes"), ("human", "so")],
        [("gpt", "nobody asked")],
        [("human", "one"), ("gpt", "two")],
    ]
    data = [{"conversations": [{"from": who, "value": said} for who, said in talk]} for talk in talks]
    path.write_text(json.dumps(data, indent=1))
    return path


def messages(path: Path) -> Path:
    talk: list[dict[str, Any]] = [
        {"role": "system", "content": "be short"},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": "and?"},
        {"role": "assistant", "content": "yes"},
    ]
    path.write_text("\n" + json.dumps({"messages": talk}) + "\n")
    return path


def said(workload: Workload) -> list[list[str]]:
    return [[message["content"] for message in row.messages or ()] for row in workload.rows]


def test_users_turns_are_asked_again_each_waiting_for_the_servers_own_answer(tmp_path: Path) -> None:
    workload = talks_workload(sharegpt(tmp_path / "s.json"), 7, ThinkTime(2.0))
    assert said(workload) == [["hello"], ["and?"], ["so"], ["one"]]
    sketches = workload.sketches
    assert sketches is not None and sketches.after is not None and sketches.continues is not None
    assert sketches.after.tolist() == [NOBODY, 0, 1, NOBODY]
    assert sketches.continues.tolist() == [False, True, True, False]
    assert sketches.delays_s is not None and sketches.delays_s.tolist() == [0, 2, 2, 0]
    assert list(sketches.session_ids or ()) == ["session-0"] * 3 + ["session-1"]
    assert workload.output_tokens == [7] * 4
    assert workload.prompt_tokens is None, "only the server can count"
    assert any("1 conversation left out" in note for note in workload.notes)


def test_of_openais_messages_the_system_message_goes_with_the_first_turn(tmp_path: Path) -> None:
    workload = talks_workload(messages(tmp_path / "m.jsonl"), 7, AT_ONCE)
    assert said(workload) == [["be short", "hello"], ["and?"]]


def test_so_many_conversations_of_so_many_turns_are_held(tmp_path: Path) -> None:
    path = sharegpt(tmp_path / "s.json")
    assert said(talks_workload(path, 1, AT_ONCE, num_sessions=1, num_turns=2)) == [["hello"], ["and?"]]
    assert said(talks_workload(path, 1, AT_ONCE, num_turns=1)) == [["hello"], ["one"]]


def test_a_file_is_known_by_what_it_says(tmp_path: Path) -> None:
    assert holds_conversations(sharegpt(tmp_path / "a"))
    assert holds_conversations(messages(tmp_path / "b"))
    trace = tmp_path / "c"
    trace.write_text('{"timestamp": 0, "input_length": 4, "output_length": 1, "hash_ids": [0]}\n')
    assert not holds_conversations(trace)
    assert not holds_conversations(tmp_path / "none")


def test_each_kind_of_file_refuses_the_options_of_the_other(tmp_path: Path) -> None:
    talks = DatasetConfig(dataset_name="sessions", dataset_path=str(sharegpt(tmp_path / "s.json")))
    assert outline(ServeConfig(dataset=talks)).num_requests == 4
    with pytest.raises(ConfigError, match="--length-scale is for traces"):
        outline(ServeConfig(dataset=talks, trace=TraceConfig(length_scale=0.5)))
    path = tmp_path / "t.jsonl"
    path.write_text('{"timestamp": 0, "input_length": 4, "output_length": 1, "hash_ids": [0]}\n')
    trace = DatasetConfig(dataset_name="sessions", dataset_path=str(path))
    with pytest.raises(ConfigError, match="--turn-output-len is for made-up sessions"):
        outline(ServeConfig(dataset=trace, sessions=SessionsConfig(turn_output_len=5)))


def test_a_file_in_which_nobody_asks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text('[{"conversations": [{"from": "gpt", "value": "x"}]}]')
    with pytest.raises(ConfigError, match="no conversation in which a user says something"):
        talks_workload(path, 1, AT_ONCE)
