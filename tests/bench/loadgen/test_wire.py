"""HTTP answers parsed from bytes cut anywhere."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixlab.bench.loadgen.wire import ResponseParser, WireError
from prefixlab.core.errors import TargetError

HEAD = b"HTTP/1.1 200 OK\r\n"


def parse(*pieces: bytes) -> tuple[ResponseParser, bytes]:
    parser = ResponseParser()
    body = b"".join(part for piece in pieces for part in parser.feed(piece))
    return parser, body


def chunked(*chunks: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    framed = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    return HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + framed + end


def test_a_body_of_a_stated_length_ends_there() -> None:
    parser, body = parse(HEAD + b"Content-Length: 5\r\n\r\nhel")
    assert (body, parser.complete, parser.num_left_bytes) == (b"hel", False, 2)
    assert parser.feed(b"lo") == [b"lo"]
    assert parser.complete and parser.keep_alive
    assert (parser.status, parser.headers) == (200, {"content-length": "5"})


def test_an_empty_body_is_complete_with_its_head() -> None:
    parser, body = parse(HEAD + b"Content-Length: 0\r\n\r\n")
    assert (body, parser.complete) == (b"", True)


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_that_has_no_body_is_complete_with_its_head(status: int) -> None:
    parser, _ = parse(b"HTTP/1.1 %d Nothing\r\n\r\n" % status)
    assert parser.complete


def test_every_chunk_is_a_piece_of_its_own() -> None:
    parser = ResponseParser()
    assert parser.feed(chunked(b"one", b"two", b"three")) == [b"one", b"two", b"three"]
    assert parser.complete and parser.keep_alive and parser.num_chunk_ends == 3


def test_a_chunk_counts_as_ended_with_its_last_byte_of_content() -> None:
    parser = ResponseParser()
    parser.feed(HEAD + b"Transfer-Encoding: chunked\r\n\r\n4\r\nab")
    assert parser.num_chunk_ends == 0
    assert parser.feed(b"cd") == [b"cd"]
    assert parser.num_chunk_ends == 1
    assert parser.feed(b"\r\n1\r\nx\r\n") == [b"x"]
    assert parser.num_chunk_ends == 1
    parser.feed(b"0\r\n\r\n")
    assert parser.num_chunk_ends == 0 and parser.complete


def test_chunk_extensions_and_trailers_are_read_over() -> None:
    parser, body = parse(
        chunked(end=b"3;name=value\r\nabc\r\n1 \r\nd\r\n0;last\r\nX-Trailer: 1\r\nY: 2\r\n\r\n")
    )
    assert (body, parser.complete, parser.num_surplus_bytes) == (b"abcd", True, 0)
    assert "x-trailer" not in parser.headers


def test_without_a_length_the_body_ends_with_the_connection() -> None:
    parser, body = parse(HEAD + b"\r\nall ", b"that comes")
    assert (body, parser.complete) == (b"all that comes", False)
    assert parser.eof()
    assert parser.complete and not parser.keep_alive


@pytest.mark.parametrize(
    "data", [b"", b"HTTP/1.1 20", HEAD, HEAD + b"Content-Length: 5\r\n\r\nhell", chunked(end=b"")]
)
def test_a_connection_closed_early_leaves_no_whole_message(data: bytes) -> None:
    parser, _ = parse(data)
    assert not parser.eof()


def test_interim_answers_are_skipped() -> None:
    parser, body = parse(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
        + HEAD
        + b"Content-Length: 1\r\n\r\n!"
    )
    assert (parser.status, body, parser.headers) == (200, b"!", {"content-length": "1"})


@pytest.mark.parametrize(
    ("head", "keep_alive"),
    [
        (b"HTTP/1.1 200 OK\r\n", True),
        (b"HTTP/1.1 200\r\nConnection: Close\r\n", False),
        (b"HTTP/1.1 200 OK\r\nConnection: Upgrade, close\r\n", False),
        (b"HTTP/1.0 200 OK\r\n", False),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n", True),
    ],
)
def test_whether_the_connection_lives_on_follows_version_and_header(head: bytes, keep_alive: bool) -> None:
    parser, _ = parse(head + b"Content-Length: 0\r\n\r\n")
    assert parser.keep_alive is keep_alive


def test_bytes_after_the_end_are_counted_and_spoil_the_connection() -> None:
    parser, body = parse(HEAD + b"Content-Length: 1\r\n\r\n!HTTP", b"/1.1")
    assert (body, parser.complete, parser.num_surplus_bytes, parser.keep_alive) == (b"!", True, 8, False)


def test_fields_of_one_name_are_joined_and_folded_ones_unfolded() -> None:
    parser, _ = parse(HEAD + b"A: 1\r\na: 2\r\nB: x\r\n  y\r\nContent-Length: 0, 0\r\n\r\n")
    assert parser.headers == {"a": "1, 2", "b": "x y", "content-length": "0, 0"}


def test_a_transfer_coding_wins_over_a_length() -> None:
    _, body = parse(HEAD + b"Content-Length: 99\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n")
    assert body == b"a"


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH",
        b"<html>",
        b"HTTP/2 200\r\n",
        b"HTTP/1.1 abc\r\n",
        b"HTTP/1.1 2000 OK\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        HEAD + b"no colon\r\n",
        HEAD + b"spaced name: 1\r\n",
        HEAD + b" folded: onto nothing\r\n",
        HEAD + b"Content-Length: 1, 2\r\n\r\n",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: x\r\n\r\n",
        HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
        chunked(end=b"zz\r\n"),
        chunked(end=b"0x3\r\nabc\r\n"),
        chunked(end=b"1_0\r\n"),
        chunked(end=b"-1\r\n"),
        chunked(end=b"\r\n"),
        chunked(end=b"1\r\ntoo long\r\n"),
        chunked(end=b"11112222333344445\r\n"),
        HEAD + b"A: " + b"a" * 300_000,
    ],
)
def test_what_is_not_http_is_an_error_that_quotes_it(data: bytes) -> None:
    with pytest.raises(WireError, match=r"."):
        parse(data)
    with pytest.raises(TargetError):
        parse(*(data[at : at + 1] for at in range(len(data))))


chunks = st.lists(
    st.binary(min_size=1, max_size=40) | st.sampled_from([b"0\r\n\r\n", b"\r\n", b"data: x\r\n\r\n"]),
    max_size=8,
)
framings = st.one_of(
    chunks.map(lambda c: (chunked(*c), b"".join(c), len(c))),
    chunks.map(lambda c: (chunked(*c, end=b"0\r\nT: 1\r\n\r\n"), b"".join(c), len(c))),
    st.binary(max_size=60).map(lambda b: (HEAD + b"Content-Length: %d\r\n\r\n%s" % (len(b), b), b, 0)),
    st.binary(max_size=60).map(lambda b: (b"HTTP/1.1 100 \r\n\r\n" + HEAD + b"X: y\n\r\n" + b, b, 0)),
)


@settings(deadline=None, max_examples=300)
@given(framings, st.data())
def test_however_the_bytes_are_cut_the_answer_is_the_same(
    message: tuple[bytes, bytes, int], data: st.DataObject
) -> None:
    raw, body, num_chunks = message
    cuts = data.draw(st.lists(st.integers(0, len(raw)), max_size=12).map(sorted))
    parser = ResponseParser()
    got, ends = b"", 0
    for start, stop in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        got += b"".join(parser.feed(raw[start:stop]))
        ends += parser.num_chunk_ends
    assert parser.eof()
    assert (got, ends, parser.status, parser.num_surplus_bytes) == (body, num_chunks, 200, 0)


@settings(deadline=None)
@given(st.binary(max_size=80))
def test_any_bytes_are_taken_in_or_refused_by_name(junk: bytes) -> None:
    for raw in (junk, HEAD + junk, chunked(end=junk)):
        try:
            parse(raw)
        except WireError:
            continue


pieces_of_a_stream = st.lists(
    st.one_of(
        st.binary(min_size=1, max_size=300).map(lambda c: b"%x\r\n%s\r\n" % (len(c), c)),
        st.binary(min_size=1, max_size=300).map(lambda c: b"%X\r\n%s\r\n" % (len(c), c)),
        st.binary(min_size=1, max_size=40).map(lambda c: b"0%x;ext=1\r\n%s\r\n" % (len(c), c)),
        st.tuples(st.binary(min_size=1, max_size=20), st.binary(min_size=1, max_size=20)).map(
            lambda pair: b"".join(b"%x\r\n%s\r\n" % (len(c), c) for c in pair)
        ),
        st.binary(min_size=10, max_size=20).map(lambda c: b"%x\r\n%s" % (len(c) + 7, c)),
        st.sampled_from([b"1234567\r\n", b"0\r\n\r\n", b"\r\n", b"3\r\nab\r\n"]),
    ),
    max_size=10,
)


@settings(deadline=None, max_examples=300)
@given(pieces_of_a_stream)
def test_skipping_whole_chunks_leaves_the_parser_where_feeding_them_does(pieces: list[bytes]) -> None:
    skipping, feeding = ResponseParser(), ResponseParser()
    for parser in (skipping, feeding):
        parser.feed(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    num_skipped = skipping.skip_whole_chunks(pieces, 0)
    feeding.feed(b"".join(pieces[:num_skipped]))
    assert skipping.num_chunk_ends == feeding.num_chunk_ends == num_skipped
    rest = b"".join(pieces[num_skipped:])
    ends: list[object] = []
    for parser in (skipping, feeding):
        try:
            ends.append((parser.feed(rest), parser.complete, parser.num_surplus_bytes, parser.eof()))
        except WireError as error:
            ends.append(str(error))
    assert ends[0] == ends[1]


def test_a_piece_that_is_one_chunk_is_skipped_and_the_first_other_one_is_not() -> None:
    parser = ResponseParser()
    parser.feed(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    pieces = [b"ignored", b"3\r\nabc\r\n", b"A\r\n0123456789\r\n", b"2\r\nab", b"\r\n"]
    assert parser.skip_whole_chunks(pieces, 1) == 2
    assert parser.feed(b"".join(pieces[3:])) == [b"ab"]
