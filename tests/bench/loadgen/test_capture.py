from __future__ import annotations

import io
import os
from array import array
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefixlab.bench.loadgen import capture
from prefixlab.bench.loadgen.capture import MAGIC, Answer, ClockSample, End, Ending, Frame
from prefixlab.core.errors import ConfigError

TIMES = st.integers(-1, 2**62)
READS = st.lists(st.tuples(TIMES, TIMES, st.binary(max_size=30)), max_size=5)


@st.composite
def answers(draw: st.DrawFn) -> Answer:
    reads = draw(READS)
    times: dict[str, Any] = {
        name: draw(TIMES) for name in ("sent_ns", "connect_started_ns", "connected_ns", "ended_ns")
    }
    return Answer(
        index=draw(st.integers(0, 2**32 - 1)),
        ending=draw(st.sampled_from(Ending)),
        intended_ns=draw(TIMES),
        num_retries=draw(st.integers(0, 255)),
        kernel_ns=array("q", [kernel for kernel, _, _ in reads]),
        process_ns=array("q", [process for _, process, _ in reads]),
        lengths=array("I", [len(data) for _, _, data in reads]),
        pieces=[data for _, _, data in reads],
        detail=draw(st.text(max_size=20)),
        **times,
    )


FRAMES = st.lists(st.one_of(answers(), st.builds(ClockSample, TIMES, TIMES, TIMES)), max_size=6)


def as_read(frame: Frame) -> Frame:
    """With its pieces as one, which is how they come back."""
    if isinstance(frame, Answer):
        frame.pieces = (b"".join(frame.pieces),)
    return frame


@given(FRAMES)
def test_frames_come_back_as_they_were_written_up_to_the_end(frames: list[Frame]) -> None:
    file = io.BytesIO(b"".join(map(capture.encode, [*frames, End(), *frames])))
    assert list(capture.read_frames(file)) == [*map(as_read, frames), End()]


@given(FRAMES, st.data())
def test_a_torn_frame_is_left_for_later(frames: list[Frame], data: st.DataObject) -> None:
    pieces = [capture.encode(frame) for frame in frames]
    whole = b"".join(pieces)
    cut = data.draw(st.integers(0, len(whole)))
    file = io.BytesIO()
    file.write(whole[:cut])
    file.seek(0)
    first = list(capture.read_frames(file))
    at = file.tell()
    assert at == sum(map(len, pieces[: len(first)])), "it stands at the start of the torn frame"
    file.seek(0, os.SEEK_END)
    file.write(whole[cut:])
    file.seek(at)
    assert [*first, *capture.read_frames(file)] == [*map(as_read, frames)]


def test_appending_writes_whole_frames(tmp_path: Path) -> None:
    path = tmp_path / "capture-0.bin"
    path.write_bytes(MAGIC)
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    capture.append(fd, ClockSample(1, 2, 3))
    capture.append(fd, End())
    os.close(fd)
    with path.open("rb") as file:
        assert capture.check_magic(file)
        assert list(capture.read_frames(file)) == [ClockSample(1, 2, 3), End()]


@pytest.mark.parametrize("length", range(len(MAGIC)))
def test_a_magic_that_is_not_all_there_yet_is_waited_for(length: int) -> None:
    file = io.BytesIO(MAGIC[:length])
    assert not capture.check_magic(file)
    assert file.tell() == 0


def test_another_kind_of_file_is_no_capture() -> None:
    with pytest.raises(ConfigError, match="is not a capture"):
        capture.check_magic(io.BytesIO(b"prefixlab-capture-9\n"))
