"""Fetching: whole or not at all, resumed where it can be, and never a wrong file."""

from __future__ import annotations

import hashlib
import json
import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixlab.bench.traces.fetch import FetchError, checksum, fetch
from prefixlab.bench.traces.public import PUBLIC_TRACES, PublicTrace
from prefixlab.bench.traces.reading import FORMATS
from prefixlab.core.errors import ConfigError
from tests.bench.traces.file_server import FileServer, serving
from tests.bench.traces.trace_files import MOONCAKE, real_trace

CONTENT = b"".join(json.dumps({**MOONCAKE, "timestamp": i}).encode() + b"\n" for i in range(3000))
OTHER = CONTENT.replace(b"40", b"41")
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with serving(CONTENT, "trace.jsonl") as served:
        yield served


def public(server: FileServer, sha256: str | None = SHA256) -> PublicTrace:
    return PublicTrace("t", server.url, "mooncake", "MIT", "nobody", sha256)


def files(folder: Path) -> list[str]:
    return sorted(found.name for found in folder.iterdir())


def test_a_trace_is_downloaded_checked_and_put_in_its_place(server: FileServer, tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    fetched = fetch(public(server), tmp_path / "new", lambda done, total: told.append((done, total)))
    assert fetched.path.read_bytes() == CONTENT
    assert (fetched.sha256, fetched.num_bytes, fetched.was_there) == (SHA256, len(CONTENT), False)
    assert files(tmp_path / "new") == ["trace.jsonl"]
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert server.asked == [(None, None)]


def test_what_is_there_is_not_downloaded_again(server: FileServer, tmp_path: Path) -> None:
    fetch(public(server), tmp_path)
    again = fetch(public(server), tmp_path)
    assert again.was_there
    assert len(server.asked) == 1


def test_another_file_of_that_name_is_refused_and_left_alone(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "trace.jsonl").write_bytes(OTHER)
    with pytest.raises(ConfigError, match=r"is there and is another file.*move it away"):
        fetch(public(server), tmp_path)
    assert (tmp_path / "trace.jsonl").read_bytes() == OTHER
    assert not server.asked


def test_a_checksum_nobody_knows_is_recorded_and_held_to_later(server: FileServer, tmp_path: Path) -> None:
    first = fetch(public(server, None), tmp_path)
    assert first.checked_against == ""
    assert (tmp_path / "trace.jsonl.sha256").read_text() == f"{SHA256}  trace.jsonl\n"
    first.path.unlink()
    assert "first download" in fetch(public(server, None), tmp_path).checked_against
    first.path.unlink()
    server.content = OTHER
    with pytest.raises(FetchError, match=r"wrong file.*at the first download.*nothing was kept"):
        fetch(public(server, None), tmp_path)
    assert files(tmp_path) == ["trace.jsonl.sha256"]


def test_a_file_of_the_wrong_checksum_is_refused_and_dropped(server: FileServer, tmp_path: Path) -> None:
    server.content = OTHER
    with pytest.raises(FetchError, match=f"wrong file: sha256 .* the published file's is {SHA256}"):
        fetch(public(server), tmp_path)
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    "content",
    [
        b"<!DOCTYPE html><html>Sign in, please</html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n",
        b"TIMESTAMP,ContextTokens,GeneratedTokens\n",
        b"",
    ],
)
def test_what_is_no_trace_of_its_format_is_refused_without_a_checksum_too(
    server: FileServer, tmp_path: Path, content: bytes
) -> None:
    server.content = content
    with pytest.raises(FetchError, match="wrong file"):
        fetch(public(server, None), tmp_path)
    assert files(tmp_path) == []


def test_a_connection_cut_in_the_middle_is_taken_up_where_it_ended(
    server: FileServer, tmp_path: Path
) -> None:
    server.cut_after = [1000, 500]
    assert fetch(public(server), tmp_path).path.read_bytes() == CONTENT
    assert server.asked == [(None, None), ("bytes=1000-", '"one"'), ("bytes=1500-", '"one"')]


def test_a_server_without_ranges_begins_anew(server: FileServer, tmp_path: Path) -> None:
    server.ranges = False
    server.cut_after = [1000]
    assert fetch(public(server), tmp_path).path.read_bytes() == CONTENT


def test_a_server_that_says_nothing_of_versions_is_never_asked_for_a_part(
    server: FileServer, tmp_path: Path
) -> None:
    server.etag = None
    server.cut_after = [1000]
    assert fetch(public(server), tmp_path).path.read_bytes() == CONTENT
    assert server.asked == [(None, None), (None, None)]


def test_a_weak_tag_gives_way_to_the_date(server: FileServer, tmp_path: Path) -> None:
    server.etag, server.last_modified = 'W/"one"', "Mon, 01 Jan 2024 00:00:00 GMT"
    server.cut_after = [1000]
    assert fetch(public(server), tmp_path).path.read_bytes() == CONTENT
    assert server.asked[1] == ("bytes=1000-", server.last_modified)


def test_an_interrupted_download_is_gone_on_with_by_the_next(server: FileServer, tmp_path: Path) -> None:
    def interrupt(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    server.cut_after = [1000]
    with pytest.raises(KeyboardInterrupt):
        fetch(public(server), tmp_path, interrupt)
    assert files(tmp_path) == ["trace.jsonl.part", "trace.jsonl.part.json"]
    assert fetch(public(server), tmp_path).path.read_bytes() == CONTENT
    assert server.asked[1] == ("bytes=1000-", '"one"')
    assert files(tmp_path) == ["trace.jsonl"]


def test_parts_of_two_versions_are_never_joined(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "trace.jsonl.part").write_bytes(OTHER[:1000])
    (tmp_path / "trace.jsonl.part.json").write_text(json.dumps({"url": server.url, "validator": '"old"'}))
    assert fetch(public(server), tmp_path).path.read_bytes() == CONTENT
    assert server.asked == [("bytes=1000-", '"old"')]


@pytest.mark.parametrize(
    "known", ["{}", "junk", json.dumps({"url": "http://else/where", "validator": '"one"'})]
)
def test_a_part_of_who_knows_what_is_begun_anew(server: FileServer, tmp_path: Path, known: str) -> None:
    (tmp_path / "trace.jsonl.part").write_bytes(OTHER[:1000])
    (tmp_path / "trace.jsonl.part.json").write_text(known)
    assert fetch(public(server), tmp_path).path.read_bytes() == CONTENT
    assert server.asked == [(None, None)]


@pytest.mark.parametrize("part", [CONTENT, CONTENT + b"more"])
def test_a_part_that_is_whole_or_too_long_is_seen_to_be(
    server: FileServer, tmp_path: Path, part: bytes
) -> None:
    (tmp_path / "trace.jsonl.part").write_bytes(part)
    (tmp_path / "trace.jsonl.part.json").write_text(json.dumps({"url": server.url, "validator": '"one"'}))
    assert fetch(public(server), tmp_path).path.read_bytes() == CONTENT
    assert len(server.asked) == 1 + (part != CONTENT)


def test_a_server_that_always_cuts_at_one_place_is_given_up_with_what_to_do(
    server: FileServer, tmp_path: Path
) -> None:
    server.ranges = False
    server.cut_after = [1000] * 50
    with pytest.raises(FetchError, match=r"the connection broke .* 1,000 bytes in .*run it again to go on"):
        fetch(public(server), tmp_path)
    assert len(server.asked) == 2


def test_another_part_than_was_asked_for_is_refused(server: FileServer, tmp_path: Path) -> None:
    server.cut_after, server.shift = [1000], 7
    with pytest.raises(FetchError, match="sent another part than bytes 1,000 and on"):
        fetch(public(server), tmp_path)
    assert not (tmp_path / "trace.jsonl").exists()


def test_an_answer_that_names_no_length_is_taken_as_it_comes(server: FileServer, tmp_path: Path) -> None:
    server.says_length = False
    assert fetch(public(server), tmp_path).path.read_bytes() == CONTENT


def test_redirects_are_followed_as_releases_need_it(server: FileServer, tmp_path: Path) -> None:
    server.redirects = 2
    assert fetch(public(server), tmp_path).path.read_bytes() == CONTENT
    server.redirects = 99
    with pytest.raises(FetchError, match="cannot be fetched"):
        fetch(public(server), tmp_path / "loop")


@pytest.mark.parametrize("status", [403, 404, 500, 503])
def test_an_answer_that_is_no_file_is_named(server: FileServer, tmp_path: Path, status: int) -> None:
    server.status = status
    with pytest.raises(FetchError, match=f"{server.url} answered {status} "):
        fetch(public(server), tmp_path)
    assert files(tmp_path) == []


def test_compression_that_was_not_asked_for_is_refused(server: FileServer, tmp_path: Path) -> None:
    server.encoding = "gzip"
    with pytest.raises(FetchError, match="came compressed"):
        fetch(public(server), tmp_path)


def test_no_network_is_told_as_such(server: FileServer, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/trace.jsonl"
        with pytest.raises(FetchError, match=r"cannot be reached: .*is there a network"):
            fetch(replace(public(server), url=url), tmp_path)


def test_a_folder_that_cannot_be_made_is_named(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        fetch(public(server), tmp_path / "file")


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, len(CONTENT)), max_size=6), st.booleans(), st.booleans())
def test_wherever_it_is_cut_it_comes_whole_or_not_at_all(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], ranges: bool, has_etag: bool
) -> None:
    folder = tmp_path_factory.mktemp("cuts")
    with serving(CONTENT, "trace.jsonl") as server:
        server.ranges, server.etag, server.cut_after = ranges, '"one"' if has_etag else None, list(cuts)
        for _ in range(len(cuts) + 1):
            try:
                fetch(public(server), folder)
            except FetchError:
                assert not (folder / "trace.jsonl").exists()
    assert (folder / "trace.jsonl").read_bytes() == CONTENT


def test_the_table_names_files_formats_licences_and_whole_checksums() -> None:
    for name, trace in PUBLIC_TRACES.items():
        assert name == trace.name and trace.format in FORMATS and trace.licence and trace.cite
        assert trace.url.startswith("https://") and re.fullmatch(r"[\w.]+\.(jsonl|csv)", trace.file_name)
        assert trace.sha256 is None or re.fullmatch("[0-9a-f]{64}", trace.sha256)
    names = [trace.file_name for trace in PUBLIC_TRACES.values()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("mooncake-conversation", "mooncake_conversation.jsonl.gz"),
        ("azure-2023-code", "azure_llm_2023_code.csv.gz"),
        ("azure-2023-conv", "azure_llm_2023_conv.csv.gz"),
    ],
)
def test_known_checksums_are_those_of_the_published_files(tmp_path: Path, name: str, file: str) -> None:
    import gzip

    raw = tmp_path / "raw"
    raw.write_bytes(gzip.decompress(real_trace(file).read_bytes()))
    trace = PUBLIC_TRACES[name]
    assert (checksum(raw), raw.stat().st_size) == (trace.sha256, trace.num_bytes)
