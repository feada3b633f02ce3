"""What reading promises whatever the format: found out by content, wrong lines named, nothing half-read."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from prefixlab.bench.traces.formats.csv_lines import CHUNK_LINES
from prefixlab.bench.traces.reading import FORMATS, read_trace
from prefixlab.core.errors import ConfigError
from tests.bench.traces.trace_files import (
    AGENTIC,
    AZURE,
    BAILIAN,
    BURSTGPT,
    LENGTHS,
    MOONCAKE,
    ids_of,
    mooncake,
    write,
)

SMALL = {
    "mooncake": (MOONCAKE, mooncake(3500, 33, [0, 1, 3])),
    "bailian": (BAILIAN, {**BAILIAN, "chat_id": 2, "timestamp": 4}),
    "azure": (AZURE, "2023-11-16 18:17:03.9799600,40,5", "2023-11-16 18:17:07.4799600,33,5"),
    "burstgpt": (BURSTGPT, "5,ChatGPT,40,5,45,Conversation log", "8.5,GPT-4,33,5,38,API log"),
    "agentic": (AGENTIC,),
    "lengths": (LENGTHS, "40,5,45,8.0", "33,5,38,6.6"),
}


def block_size_of(name: str) -> int | None:
    """Two lines are too few to infer it from."""
    return None if FORMATS[name].is_csv else 16


EACH_FORMAT = pytest.mark.parametrize("name", FORMATS)


def test_every_format_has_a_small_file_here() -> None:
    assert set(SMALL) == set(FORMATS)


@EACH_FORMAT
def test_a_format_is_known_by_what_the_file_says_and_not_by_its_name(tmp_path: Path, name: str) -> None:
    trace = read_trace(write(tmp_path / "whatever.txt", *SMALL[name]))
    assert trace.name == "whatever.txt"
    assert trace.prompt_tokens.tolist()[0] == 40
    assert trace.output_tokens.tolist()[0] == 5
    assert len(trace) == 2
    assert trace.has_times == (name != "lengths")
    assert trace.has_ids == (name in ("mooncake", "bailian", "agentic"))
    assert read_trace(tmp_path / "whatever.txt", format=name).prompt_tokens.tolist()[0] == 40


@EACH_FORMAT
def test_compressed_is_known_by_its_first_bytes(tmp_path: Path, name: str) -> None:
    plain = write(tmp_path / "plain", *SMALL[name])
    packed = tmp_path / "packed"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    one, other = read_trace(plain), read_trace(packed)
    assert one.offsets_s.tolist() == other.offsets_s.tolist()
    assert ids_of(one) == ids_of(other)


@EACH_FORMAT
def test_a_mark_of_byte_order_and_dos_line_ends_are_no_content(tmp_path: Path, name: str) -> None:
    plain = write(tmp_path / "plain", *SMALL[name])
    dos = tmp_path / "dos"
    dos.write_bytes(b"\xef\xbb\xbf" + plain.read_bytes().replace(b"\n", b"\r\n"))
    assert read_trace(dos).prompt_tokens.tolist() == read_trace(plain).prompt_tokens.tolist()


def test_a_dash_is_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = gzip.compress(write(tmp_path / "t", *SMALL["azure"]).read_bytes())
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    trace = read_trace("-")
    assert (trace.name, len(trace)) == ("stdin", 2)


@EACH_FORMAT
@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_file_holds_no_request(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / "empty").write_bytes(content)
    for asked in (None, name):
        with pytest.raises(ConfigError, match="holds no request"):
            read_trace(tmp_path / "empty", format=asked)


@pytest.mark.parametrize("header", [AZURE, BURSTGPT, LENGTHS])
def test_a_header_alone_holds_no_request(tmp_path: Path, header: str) -> None:
    with pytest.raises(ConfigError, match="holds no request"):
        read_trace(write(tmp_path / "t", header))


def test_a_file_of_nothing_but_failures_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "t", BURSTGPT, *["5,ChatGPT,40,0,40,Conversation log"] * 3)
    with pytest.raises(ConfigError, match="holds no request: all 3 rows are requests that failed"):
        read_trace(path)


def test_a_csv_time_that_goes_back_far_behind_is_told_as_the_file_has_it(tmp_path: Path) -> None:
    rows = [f"2023-11-16 18:{k // 60000:02d}:{k / 1000 % 60:06.3f},40,5" for k in range(CHUNK_LINES)]
    path = write(tmp_path / "t", AZURE, *rows, "2023-11-16 18:00:01,33,5")
    message = f"t:{CHUNK_LINES + 2}: time goes back, from 2023-11-16 18:01:05.535 to 2023-11-16 18:00:01; "
    with pytest.raises(ConfigError, match=message):
        read_trace(path)
    assert len(read_trace(path, sort=True)) == CHUNK_LINES + 1


def test_ids_behind_different_beginnings_are_counted_in_a_note(tmp_path: Path) -> None:
    chained = [mooncake(0, 40, [0, 1, 2]), mooncake(1, 40, [0, 1, 3])]
    assert read_trace(write(tmp_path / "t", *chained), block_size=16).notes == ()
    for others, count in (([1, 0, 4], "2 of 5"), ([0, 2, 1], "2 of 4"), ([2, 2, 2], "1 of 4")):
        trace = read_trace(write(tmp_path / "t", *chained, mooncake(2, 40, others)), block_size=16)
        assert [note.split(":")[0] for note in trace.notes] == [
            f"{count} hash ids stand behind different beginnings"
        ]


@pytest.mark.parametrize("line", ["not JSON", "[1]", "3", '{"prompt": "x"}', "a,b,c", '"text"'])
def test_a_file_of_no_known_format_is_told_which_there_are(tmp_path: Path, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_trace(write(tmp_path / "t", "", line))
    assert f"{tmp_path / 't'}:2:" in str(caught.value)
    if not line.startswith("["):
        assert "hash_ids" in str(caught.value)
        assert "ContextTokens" in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(ConfigError, match=rf"{path}.* cannot be read: [^\[]*$"):
            read_trace(path)


@EACH_FORMAT
def test_a_file_cut_off_in_the_middle_is_named_with_the_line(tmp_path: Path, name: str) -> None:
    many = SMALL[name] if name == "agentic" else (*SMALL[name], *[SMALL[name][-1]] * 400)
    packed = gzip.compress(write(tmp_path / "t", *many).read_bytes())
    (tmp_path / "cut.gz").write_bytes(packed[:-12])
    with pytest.raises(ConfigError, match=r"cut.gz:\d+: the file cannot be read on"):
        read_trace(tmp_path / "cut.gz")


def test_damaged_compression_is_named(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(write(tmp_path / "t", *[MOONCAKE] * 50).read_bytes()))
    packed[20] ^= 255
    (tmp_path / "bad.gz").write_bytes(packed)
    with pytest.raises(ConfigError, match=r"bad.gz:\d+: "):
        read_trace(tmp_path / "bad.gz", block_size=16)


@EACH_FORMAT
def test_bytes_that_are_no_text_are_named(tmp_path: Path, name: str) -> None:
    content = write(tmp_path / "t", *SMALL[name]).read_bytes()
    (tmp_path / "t").write_bytes(content + b"\xff\xfe\n")
    with pytest.raises(ConfigError, match=rf"t:{len(SMALL[name]) + 1}: not UTF-8: byte 1 .* 0xff"):
        read_trace(tmp_path / "t")


WRONG = {
    "mooncake": [
        ("{not json", "malformed"),
        ("[]", "a JSON array, where one object per line"),
        ({**MOONCAKE, "input_lenght": 3}, "unknown field 'input_lenght'; did you mean 'input_length'"),
        ({**MOONCAKE, "context_len": 3}, "added by Dynamo's datagen .*--ignore-fields context_len"),
        ({"timestamp": 0}, "needs input_length and output_length, which are missing"),
        ({**MOONCAKE, "input_length": "40"}, "input_length"),
        ({**MOONCAKE, "input_length": 40.5}, "input_length"),
        ({**MOONCAKE, "hash_ids": None}, "some lines have hash_ids"),
        ({"input_length": 40, "output_length": 5, "hash_ids": [0, 1, 2]}, "some lines have a timestamp"),
        ({**MOONCAKE, "input_length": 0}, "at least 1"),
        ({**MOONCAKE, "output_length": 0}, "at least 1"),
        ({**MOONCAKE, "output_length": 1 << 62}, "at most"),
        ({**MOONCAKE, "hash_ids": [0, 1, 1 << 64]}, "below 2"),
        ({**MOONCAKE, "hash_ids": [0, -1, 2]}, "negative"),
        ({**MOONCAKE, "timestamp": -1}, "time goes back, from 0 s to -0.001 s; .*--sort"),
        ({**MOONCAKE, "delay": -1}, "delay must not be negative"),
        (
            {**MOONCAKE, "hash_ids": [0, 1, 2, 3]},
            "40 tokens are 2 full blocks of 16 and a part, but 4 hash ids",
        ),
        ({**MOONCAKE, "input_length": 32}, "32 tokens are 2 full blocks of 16, but 3 hash ids"),
    ],
    "bailian": [
        ({**BAILIAN, "turns": 1}, "unknown field 'turns'; did you mean 'turn'"),
        ({**BAILIAN, "timestamp": 0.25}, "time goes back, from 0.5 s to 0.25 s"),
        ({**BAILIAN, "input_length": 80}, "80 tokens are 5 full blocks of 16, but 3"),
        ({**BAILIAN, "chat_id": 1.5}, "chat_id"),
        ({**BAILIAN, "input_length": -5}, "at least 1"),
    ],
    "azure": [
        ("2023-11-16 18:17:03,40", "2 columns, where the header has 3"),
        ("2023-11-16 18:17:03,x,5", "ContextTokens cannot be 'x'"),
        ("2023-11-16 18:17:03,4.5,5", "ContextTokens cannot be '4.5'"),
        ("2023-11-16 18:17:03,40,-5", "at least 1"),
        ("2023-11-16 18:17:03,99999999999999999999,5", "too large"),
        ("2023-11-16 18:17:04.00+02:00,40,5", "TIMESTAMP cannot be"),
        ("yesterday,40,5", "TIMESTAMP cannot be 'yesterday'"),
        ("now,40,5", "TIMESTAMP cannot be 'now'"),
        ("2023-13-16 18:17:03,40,5", "TIMESTAMP cannot be"),
        (",40,5", "TIMESTAMP cannot be ''"),
        ("2022-11-16 18:17:03,40,5", "time goes back"),
        (
            "2023-11-16 18:17:03.9799599,40,5",
            "time goes back, from 2023-11-16 18:17:03.9799600 to 2023-11-16 18:17:03.9799599;",
        ),
    ],
    "burstgpt": [
        ("4,ChatGPT,40,5,45,API log", "time goes back, from 5 to 4;"),
        ("nan,ChatGPT,40,5,45,API log", "Timestamp cannot be 'nan'"),
        ("inf,ChatGPT,40,5,45,API log", "Timestamp cannot be 'inf'"),
        ("6,ChatGPT,40,5,45,API log,", "7 columns"),
    ],
    "agentic": [
        ({**AGENTIC, "block_size": 32}, "block_size must be 16 as in the lines before, not 32"),
        ({**AGENTIC, "tools": 1}, "unknown field 'tools'"),
        (
            {**AGENTIC, "requests": [{"t": 1, "isl": 40, "osl": 5, "runs": [[1, 1]]}]},
            "2 full blocks .* 1 hash",
        ),
        (
            {**AGENTIC, "requests": [{"t": 1, "isl": 40, "osl": -1, "runs": [[1, 2]]}]},
            "request 1 of session a",
        ),
        ({**AGENTIC, "requests": [{"t": -1, "isl": 40, "osl": 1, "runs": [[1, 2]]}]}, "time goes back"),
        ({**AGENTIC, "requests": [{"t": 1, "isl": 40, "osl": 1, "runs": [[1, 0]]}]}, r"not \[1, 0\]"),
        ({**AGENTIC, "requests": [{"t": 1, "isl": 40, "osl": 1, "runs": [[1]]}]}, "requests.*runs"),
        ({**AGENTIC, "requests": [{"t": 1, "isl": 40, "osl": 1, "ids": []}]}, "unknown field `ids`"),
    ],
    "lengths": [
        ("40,5,45,8.0,1", "5 columns"),
        ("40,,45,8.0", "num_decode_tokens cannot be ''"),
    ],
}


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [(name, wrong, message) for name, cases in WRONG.items() for wrong, message in cases],
)
def test_a_wrong_line_is_named_with_file_and_line(
    tmp_path: Path, name: str, wrong: object, message: str
) -> None:
    lines = SMALL[name][:1] if not FORMATS[name].is_csv else SMALL[name][:2]
    path = write(tmp_path / "t", *lines, "", wrong)
    with pytest.raises(ConfigError, match=message) as caught:
        read_trace(path, block_size=block_size_of(name))
    assert str(caught.value).startswith(f"{path}:{len(lines) + 2}: ")


def test_a_wrong_number_of_blocks_is_named_with_its_line_where_the_size_is_inferred(tmp_path: Path) -> None:
    lines = [mooncake(k, 700 + k, list(range(k, k + -(-(700 + k) // 512)))) for k in range(2000)]
    assert read_trace(write(tmp_path / "good", *lines)).block_size == 512
    lines[1000] = mooncake(1000, 1700, [1, 2, 3, 4, 5])
    with pytest.raises(ConfigError) as caught:
        read_trace(write(tmp_path / "bad", *lines))
    assert str(caught.value) == (
        f"{tmp_path / 'bad'}:1001: 1700 tokens have 5 hash ids, which fits no blocks of 512, as 1,999 of "
        "2,000 lines do; --block-size overrules them"
    )


def test_where_lines_agree_on_no_size_none_of_them_is_called_wrong(tmp_path: Path) -> None:
    sizes = [mooncake(k, 1000, list(range(-(-1000 // (16 << k % 3))))) for k in range(30)]
    with pytest.raises(ConfigError, match=r"t: .*fit no one block size; give --block-size"):
        read_trace(write(tmp_path / "t", *sizes))
    with pytest.raises(
        ConfigError, match=r"t: .*fit no one block size, but all from 501 to 16,777,216; give"
    ):
        read_trace(write(tmp_path / "t", *[mooncake(0, 1000, [1])] * 30))


def fits(size: int, length: int, count: int) -> bool:
    return count in (length // size, -(-length // size))


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from([16, 64, 512]),
    st.lists(st.integers(1, 40_000), min_size=3, max_size=60),
    st.integers(0, 59),
    st.sampled_from([-2, -1, 1, 2, 100]),
    st.booleans(),
)
def test_whatever_line_has_a_wrong_number_of_ids_it_is_the_one_named(
    tmp_path_factory: pytest.TempPathFactory,
    size: int,
    lengths: list[int],
    at: int,
    too_many: int,
    full_only: bool,
) -> None:
    path, at = tmp_path_factory.mktemp("ids") / "t", at % len(lengths)
    counts = [length // size if full_only else -(-length // size) for length in lengths]
    counts[at] = max(0, (lengths[at] // size if too_many < 0 else -(-lengths[at] // size)) + too_many)
    lines = list(zip(lengths, counts, strict=True))
    assume(not fits(size, *lines[at]))  # there is one to take away
    num_wrong = {1 << k: sum(not fits(1 << k, *line) for line in lines) for k in range(25)}
    assume(min(num_wrong.values()) > 0)  # else nobody can see that a line is wrong
    write(path, *(mooncake(0, length, list(range(count))) for length, count in lines))
    with pytest.raises(ConfigError) as caught:
        read_trace(path)
    alike = [other for other, count in num_wrong.items() if count == 1 and not fits(other, *lines[at])]
    if len(alike) == list(num_wrong.values()).count(1):
        assert f"t:{at + 1}: {lengths[at]} tokens have {counts[at]} hash ids" in str(caught.value)


@pytest.mark.parametrize(("size", "num_lines"), [(512, 3), (64, 10), (64, 100), (512, 3000)])
def test_one_id_too_many_or_too_few_is_not_read_as_another_block_size(
    tmp_path: Path, size: int, num_lines: int
) -> None:
    lengths = [(7 + 13 * k % 29) * size + 5 for k in range(num_lines)]
    lengths[0] = 300 * size
    for at in {0, 1, num_lines // 2, num_lines - 1}:
        for wrong in (-2, 2):
            counts = [-(-length // size) + wrong * (k == at) for k, length in enumerate(lengths)]
            lines = (mooncake(0, *line) for line in zip(lengths, map(list, map(range, counts)), strict=True))
            with pytest.raises(ConfigError, match=f"t:{at + 1}: {lengths[at]} tokens have {counts[at]} hash"):
                read_trace(write(tmp_path / "t", *lines))


def test_a_size_that_is_no_power_of_two_is_found_where_few_lines_fit_one(tmp_path: Path) -> None:
    lengths = [*range(100_000, 400_000, 7001), 300_000, 300_001]
    lines = [mooncake(0, length, list(range(-(-length // 500)))) for length in lengths]
    assert read_trace(write(tmp_path / "t", *lines)).block_size == 500


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (
            "TIMESTAMP,ContextToken,GeneratedTokens",
            "unknown column 'ContextToken'; did you mean 'ContextTokens'",
        ),
        ("TIMESTAMP,ContextTokens", "needs GeneratedTokens, which is missing"),
        (f"{BURSTGPT},Cost", "unknown column 'Cost'"),
    ],
)
def test_a_wrong_header_is_named(tmp_path: Path, header: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"t:1: .*{message}"):
        read_trace(write(tmp_path / "t", header, "x"))


def test_fields_that_others_add_can_be_ignored_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "t", {**MOONCAKE, "context_len": 3, "mine": {}}, {**MOONCAKE, "mine": 1})
    assert len(read_trace(path, block_size=16, ignore_fields=("context_len", "mine"))) == 2
    with pytest.raises(ConfigError, match="mine"):
        read_trace(path, block_size=16, ignore_fields=("context_len",))
    wrong = write(tmp_path / "w", {**MOONCAKE, "mine": 1, "input_length": "x"})
    with pytest.raises(ConfigError, match=r"w:1: .*input_length"):
        read_trace(wrong, ignore_fields=("mine",))
    turn = {"isl": 40, "osl": 5, "runs": [[1, 2]], "mine": {"isl": 3}, "think_time": 3.0}
    turns = [{"t": 0, **turn}, {"t": 40, **turn}]
    agentic = write(tmp_path / "s", {**AGENTIC, "requests": turns, "mine": 1})
    trace = read_trace(agentic, ignore_fields=("mine", "think_time"))
    assert trace.think_s is not None and trace.think_s.tolist()[1] == 3
    with pytest.raises(ConfigError, match=r"s:1: .*unknown field `mine`.*\$.requests\[0\].*--ignore-fields"):
        read_trace(write(tmp_path / "s", {**AGENTIC, "requests": turns}))
    azure = write(tmp_path / "a", f"{AZURE},Cost", "2023-11-16 18:17:03,40,5,1.5")
    assert len(read_trace(azure, ignore_fields=("Cost",))) == 1


@pytest.mark.parametrize("name", ["mooncake", "bailian", "azure", "burstgpt"])
def test_lines_merely_out_of_order_can_be_sorted(tmp_path: Path, name: str) -> None:
    first, *rest = SMALL[name]
    lines = (first, *reversed(rest)) if FORMATS[name].is_csv else (*reversed(rest), first)
    path = write(tmp_path / "t", *lines)
    size = block_size_of(name)
    with pytest.raises(ConfigError, match="time goes back"):
        read_trace(path, block_size=size)
    trace = read_trace(path, block_size=size, sort=True)
    assert trace.offsets_s.tolist() == [0, 3.5]
    assert trace.prompt_tokens.tolist()[0] == 40
    assert read_trace(path, block_size=size, sort=True, num_requests=1).prompt_tokens.tolist() == [40]


@EACH_FORMAT
def test_nothing_is_looked_at_behind_what_is_wanted(tmp_path: Path, name: str) -> None:
    if name == "agentic":
        return  # sessions overlap in time: which requests come first is known at the end
    path = write(tmp_path / "t", *SMALL[name], "broken, but behind what is wanted")
    size = block_size_of(name)
    assert len(read_trace(path, num_requests=2, block_size=size)) == 2
    assert len(read_trace(path, num_requests=1, block_size=size)) == 1


def test_a_block_size_is_refused_where_there_are_no_blocks(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Azure's format, which has no blocks for --block-size"):
        read_trace(write(tmp_path / "t", *SMALL["azure"]), block_size=16)


def test_a_block_size_without_ids_is_said_to_change_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "t", {"timestamp": 0, "input_length": 40, "output_length": 4})
    assert read_trace(path, block_size=16).notes == (
        "--block-size 16 changes nothing: there are no hash ids",
    )


def test_a_saved_workload_is_no_trace_and_says_who_reads_it(tmp_path: Path) -> None:
    path = write(tmp_path / "w", {"prefixlab_workload": 1, "version": "0.1.0", "requests": 1})
    with pytest.raises(
        ConfigError, match="is a workload that --save-workload wrote, not a trace: --dataset-"
    ):
        read_trace(path)


def test_how_far_it_has_come_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "t", AZURE, *["2023-11-16 18:17:03,40,5"] * 100_000)
    told: list[tuple[int, int | None]] = []
    read_trace(path, on_read=lambda done, total: told.append((done, total)))
    size = path.stat().st_size
    assert told[-1] == (size, size)
    assert len(told) >= size >> 20
    assert told == sorted(told)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"format": "moncake"}, "did you mean 'mooncake'"),
        ({"block_size": 0}, "--block-size"),
        ({"num_requests": -1}, "negative"),
        ({"session_interval_s": -1.0}, "--session-interval"),
        ({"session_interval_s": 5.0}, "Mooncake's format, whose times leave --session-interval no use"),
    ],
)
def test_what_cannot_be_asked_is_refused(tmp_path: Path, given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_trace(write(tmp_path / "t", MOONCAKE), **given)  # type: ignore[arg-type]


@settings(deadline=None, max_examples=200)
@given(
    st.binary(max_size=200)
    | st.sampled_from([line for lines in SMALL.values() for line in lines]).map(
        lambda line: (line if isinstance(line, str) else json.dumps(line)).encode()
    ),
    st.integers(0, 200),
    st.binary(max_size=3),
)
def test_whatever_the_bytes_it_is_a_trace_or_an_error_that_names_the_file(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, at: int, noise: bytes
) -> None:
    path = tmp_path_factory.mktemp("noise") / "t"
    path.write_bytes(content[:at] + noise + content[at:])
    try:
        trace = read_trace(path)
    except ConfigError as error:
        assert str(path) in str(error)
    else:
        assert len(trace) and (trace.prompt_tokens > 0).all()
