"""`trace convert` and `trace fetch` as users call them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from prefixlab.bench.traces import public
from prefixlab.bench.traces.public import PublicTrace
from prefixlab.cli.main import main
from tests.bench.traces.file_server import serving
from tests.bench.traces.trace_files import AGENTIC, AZURE, BAILIAN, BURSTGPT, MOONCAKE, write


def test_any_format_is_converted_to_mooncakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "in", AGENTIC)
    assert main(["trace", "convert", str(source), str(tmp_path / "out.jsonl")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert lines == [
        {"timestamp": 0, "input_length": 40, "output_length": 5, "hash_ids": [1, 2], "session_id": "a"},
        {
            "timestamp": 40000,
            "input_length": 70,
            "output_length": 6,
            "hash_ids": [1, 7, 8, 9],
            "session_id": "a",
            "delay": 3000,
        },
    ]
    assert "2 requests, 1 sessions, 6 blocks of 16 tokens" in capsys.readouterr().err


def test_data_goes_to_standard_output_and_talk_does_not(
    tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = write(tmp_path / "in", BURSTGPT, "5,x,40,5,45,API log", "6,x,40,0,40,API log").read_bytes()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert main(["trace", "convert", "-", "-"]) == 0
    told = capsysbinary.readouterr()
    assert [json.loads(line)["input_length"] for line in told.out.splitlines()] == [40]
    assert b"note: 1 of 2 lines left out" in told.err


def test_how_an_odd_file_is_mended_is_an_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = write(tmp_path / "odd", {**BAILIAN, "timestamp": 9, "mine": 1}, {**BAILIAN, "chat_id": 2})
    out = tmp_path / "out"
    assert main(["trace", "convert", str(odd), str(out)]) == 2
    assert "odd:1: unknown field 'mine'" in capsys.readouterr().err
    assert main(["trace", "convert", str(odd), str(out), "--ignore-fields", "mine"]) == 2
    assert "odd:2: time goes back" in capsys.readouterr().err
    assert not out.exists()
    assert main(["trace", "convert", str(odd), str(out), "--ignore-fields", "mine", "--sort"]) == 0
    assert len(out.read_text().splitlines()) == 2


@pytest.mark.parametrize("verb", ["convert", "synthesize"])
def test_what_cannot_be_read_again_without_a_block_size_says_which(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    source = write(tmp_path / "in", *[{**MOONCAKE, "input_length": 300, "hash_ids": [7]}] * 3)
    out = tmp_path / "out"
    assert main(["trace", verb, str(source), str(out), "--block-size", "512"]) == 0
    assert "out: its lines do not tell the size of its blocks: read it with --block-size 512" in (
        capsys.readouterr().err
    )
    assert main(["trace", verb, str(out), str(tmp_path / "again")]) == 2


@pytest.mark.parametrize("verb", ["convert", "synthesize"])
def test_a_trace_is_never_written_over_itself_whatever_links_lead_there(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "in", MOONCAKE, MOONCAKE)
    before = source.read_bytes()
    soft, hard = tmp_path / "soft", tmp_path / "hard"
    soft.symlink_to(source)
    hard.hardlink_to(source)
    for target in (source, tmp_path / "." / "in", soft, hard):
        assert main(["trace", verb, str(source), str(target), "--force", "--block-size", "16"]) == 2
        assert f"{target} is {source} itself" in capsys.readouterr().err
    assert source.read_bytes() == before and soft.is_symlink()


@pytest.mark.parametrize("verb", ["convert", "synthesize"])
def test_another_file_is_overwritten_only_by_force(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write(tmp_path / "in", MOONCAKE, MOONCAKE), tmp_path / "out"
    out.write_text("precious")
    words = ["trace", verb, str(source), str(out), "--block-size", "16"]
    assert main(words) == 2
    assert f"{out} is there already: --force overwrites it" in capsys.readouterr().err
    assert out.read_text() == "precious"
    assert main([*words, "--force"]) == 0
    assert len(out.read_text().splitlines()) == 2


def test_only_so_many_from_a_given_format(tmp_path: Path) -> None:
    many = write(tmp_path / "in", AZURE, *["2023-11-16 18:17:03,40,5"] * 5)
    words = ["--num-requests", "3", "--trace-format", "azure", "--format", "mooncake"]
    assert main(["trace", "convert", str(many), str(tmp_path / "out"), *words]) == 0
    assert len((tmp_path / "out").read_text().splitlines()) == 3
    assert main(["trace", "convert", str(many), str(tmp_path / "out"), "--trace-format", "mooncake"]) == 2


def test_what_there_is_to_fetch_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "fetch", "--list"]) == 0
    told = capsys.readouterr().out
    assert "mooncake-conversation" in told and "Apache-2.0" in told and "3,029,533" in told
    assert "unknown: recorded at first download" in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no name is given; prefixlab trace fetch --list"),
        (["mooncake-conversatoin"], "did you mean 'mooncake-conversation'"),
    ],
)
def test_an_unknown_name_is_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["trace", "fetch", *words]) == 2
    assert message in capsys.readouterr().err


def test_fetching_tells_the_licence_and_prints_the_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with serving(json.dumps(MOONCAKE).encode() + b"\n", "t.jsonl") as server:
        trace = PublicTrace("t", server.url, "mooncake", "MIT", "Someone, 2025")
        monkeypatch.setitem(public.PUBLIC_TRACES, "t", trace)
        for told in ("is recorded in t.jsonl.sha256", "was there, sha256 as it must be"):
            assert main(["trace", "fetch", "t", "--to", str(tmp_path)]) == 0
            captured = capsys.readouterr()
            assert captured.out == f"{tmp_path / 't.jsonl'}\n"
            assert "licence: MIT; cite: Someone, 2025" in captured.err and told in captured.err
        server.status = 404
        assert main(["trace", "fetch", "t", "--to", str(tmp_path / "new")]) == 1
        assert "answered 404" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["convert", "synthesize"])
def test_where_there_is_no_place_for_the_result_that_is_told_before_anything_is_read(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = tmp_path / "gone" / "out.jsonl"
    assert main(["trace", verb, str(tmp_path / "no such trace"), str(nowhere)]) == 2
    assert f"{nowhere} cannot be written: there is no folder {nowhere.parent}\n" in capsys.readouterr().err
    assert main(["trace", verb, str(tmp_path / "no such trace"), str(tmp_path)]) == 2
    assert f"{tmp_path} cannot be written: it is a folder\n" in capsys.readouterr().err
