from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixlab.bench.loadgen.plan import Planned
from prefixlab.bench.workloads.files.custom import Row
from prefixlab.bench.workloads.files.saved import FORMAT, Head, path_of, saved_workload, write_workload
from prefixlab.core.block_hash import as_token_ids
from prefixlab.core.errors import ConfigError
from prefixlab.core.target import TargetRequest

CONTENTS = st.one_of(
    st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=8).map(
        lambda ids: {"prompt_token_ids": as_token_ids(ids)}
    ),
    st.text(min_size=1).map(lambda text: {"prompt_text": text}),
    st.text().map(lambda text: {"messages": ({"role": "user", "content": text},)}),
)


def planned(
    number: int, content: dict[str, Any] | None = None, output_len: int = 4, **fields: Any
) -> Planned:
    content = {"prompt_token_ids": as_token_ids([1, 2, number])} if content is None else content
    ids = content.get("prompt_token_ids")
    length = 0 if ids is None else len(ids)
    return Planned(TargetRequest(f"p-{number}", output_len, **content), length, **fields)


def save(path: Path, plan: list[Planned], *, timed: bool = False) -> None:
    write_workload(path, Head(FORMAT, requests=len(plan)), plan, timed=timed, id_prefix="p-")


def row_of(one: Planned) -> tuple[Any, ...]:
    ids = one.request.prompt_token_ids
    listed = None if ids is None else ids.tolist()
    return one.request.max_new_tokens, listed, one.request.prompt_text, one.request.messages


def listed(row: Row) -> tuple[Any, ...]:
    ids = None if row.token_ids is None else list(row.token_ids)
    return row.num_output_tokens, ids, row.text, row.messages


@st.composite
def plans(draw: st.DrawFn) -> list[Planned]:
    found = []
    for number, content in enumerate(draw(st.lists(CONTENTS, min_size=1, max_size=8))):
        one = planned(number, content, draw(st.integers(1, 9)), offset_s=draw(st.floats(0, 100)))
        if number and draw(st.booleans()):
            one = replace(
                one,
                after=draw(st.integers(0, number - 1)),
                delay_s=draw(st.floats(0, 9)),
                continues=draw(st.booleans()),
            )
        found.append(replace(one, session_id=f"p-s{number % 2}", turn=number))
    return found


@pytest.mark.parametrize("name", ["w.jsonl", "w.jsonl.gz"])
@settings(max_examples=50, deadline=None)
@given(plan=plans())
def test_what_is_saved_is_read_back_as_it_was(
    name: str, tmp_path_factory: pytest.TempPathFactory, plan: list[Planned]
) -> None:
    path = tmp_path_factory.mktemp("saved") / name
    save(path, plan, timed=True)
    workload = saved_workload(path)
    sketches = workload.sketches
    assert sketches is not None and sketches.after is not None
    assert [listed(row) for row in workload.rows] == [row_of(one) for one in plan]
    assert sketches.output_tokens.tolist() == [one.request.max_new_tokens for one in plan]
    assert sketches.offsets_s is not None and sketches.delays_s is not None and sketches.continues is not None
    assert sketches.offsets_s.tolist() == [one.offset_s for one in plan]
    assert sketches.after.tolist() == [-1 if one.after is None else one.after for one in plan]
    assert sketches.delays_s.tolist() == [one.delay_s for one in plan]
    assert sketches.continues.tolist() == [one.continues for one in plan]
    assert sketches.session_ids == [f"s{number % 2}" for number in range(len(plan))]
    assert sketches.turns is not None and sketches.turns.tolist() == list(range(len(plan)))
    assert workload.counted == all(one.num_prompt_tokens for one in plan)


def test_a_plan_without_sessions_and_times_is_read_back_without(tmp_path: Path) -> None:
    save(tmp_path / "w.jsonl", [planned(0), planned(1)])
    sketches = saved_workload(tmp_path / "w.jsonl").sketches
    assert sketches is not None
    assert (sketches.after, sketches.session_ids, sketches.offsets_s) == (None, None, None)
    assert sketches.shared_tokens.tolist() == [0, 2], "found in the tokens"


def test_the_first_rows_are_those_of_the_file(tmp_path: Path) -> None:
    plan = [planned(number) for number in range(5)]
    save(tmp_path / "w.jsonl", plan)
    workload = saved_workload(tmp_path / "w.jsonl")
    assert [listed(row) for row in workload.first(2).rows] == [row_of(one) for one in plan[:2]]
    assert listed(workload.rows[3]) == row_of(plan[3])
    assert workload.prompt_tokens == [3] * 5
    with pytest.raises(ConfigError, match="6 requests are asked for, and the workload has 5"):
        workload.first(6)


def test_the_same_workload_makes_the_same_file(tmp_path: Path) -> None:
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        save(tmp_path / name, [planned(number) for number in range(9)])
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()
    assert len(gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes()).splitlines()) == 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl.gz", "b.jsonl.gz"]


def test_a_file_that_cannot_be_finished_is_not_there(tmp_path: Path) -> None:
    def broken() -> Any:
        yield planned(0)
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        write_workload(tmp_path / "w.jsonl", Head(FORMAT, requests=2), broken(), timed=False)
    assert not list(tmp_path.iterdir())


LINE = {"id": "1", "output_tokens": 4, "token_ids": [1, 2]}


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "line 3: not a request"),
        ({**LINE, "prompt": "x"}, "line 3: .*unknown field `prompt`"),
        ({"id": "1", "output_tokens": 4}, 'line 3: one of "token_ids"'),
        ({**LINE, "text": "x"}, 'line 3: one of "token_ids"'),
        ({**LINE, "token_ids": []}, 'line 3: one of "token_ids"'),
        ({**LINE, "token_ids": [-1]}, "line 3: token ids must lie in"),
        ({**LINE, "token_ids": [1 << 31]}, "line 3: token ids must lie in"),
        ({**LINE, "output_tokens": 0}, "line 3: lengths must be at least 1"),
        ({**LINE, "after": 1}, 'line 3: "after" must name an earlier request'),
        ({**LINE, "continues": True}, 'line 3: what "continues" another'),
        ({**LINE, "after": 0, "delay_s": -1.0}, "line 3: times must not be negative"),
        ({**LINE, "offset_s": 1.0}, 'line 3: "offset_s" must be in all lines, or in none'),
        ("", "line 3: not a request"),
    ],
)
def test_broken_lines_are_named(tmp_path: Path, line: Any, complaint: str) -> None:
    path = tmp_path / "w.jsonl"
    head = {"prefixlab_workload": 1, "requests": 2}
    lines = [head, {**LINE, "id": "0"}, line, LINE]
    path.write_text("\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines))
    with pytest.raises(ConfigError, match=complaint):
        saved_workload(path)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "holds no request"),
        (b'{"prompt": "x"}\n', "line 1: not a workload that --save-workload wrote"),
        (b'{"prefixlab_workload": 99}\n', "was saved by a later version"),
        (b'{"prefixlab_workload": 1, "requests": 2}\n' + json.dumps(LINE).encode(), "ends early: 1 of 2"),
    ],
)
def test_files_that_are_none_of_ours_are_named(tmp_path: Path, data: bytes, complaint: str) -> None:
    (tmp_path / "w.jsonl").write_bytes(data)
    with pytest.raises(ConfigError, match=complaint):
        saved_workload(tmp_path / "w.jsonl")


def test_a_torn_compressed_file_is_named(tmp_path: Path) -> None:
    save(tmp_path / "w.jsonl.gz", [planned(number) for number in range(99)])
    data = (tmp_path / "w.jsonl.gz").read_bytes()
    for number, torn in enumerate((data[: len(data) // 2], b"x" + data, b"not gzip")):
        path = tmp_path / f"torn{number}.jsonl.gz"
        path.write_bytes(torn)
        with pytest.raises(ConfigError, match=f"torn{number}.jsonl.gz"):
            saved_workload(path)


def test_one_of_several_files_says_which_it_is() -> None:
    assert path_of(Path("a/w.jsonl.gz"), "000-x", "repeat1") == Path("a/w-000-x-repeat1.jsonl.gz")
    assert path_of(Path("w"), "repeat0") == Path("w-repeat0")
