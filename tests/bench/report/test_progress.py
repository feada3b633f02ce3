from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from prefixlab.bench.loadgen.driver import Progress
from prefixlab.bench.report.progress import LINE_EVERY_S, ProgressBar, Rates

START = Progress(
    elapsed_s=0.0,
    planned=100,
    due=0,
    sent=0,
    first=0,
    tokens=0,
    finished=0,
    failed=0,
    in_flight=0,
    queued=0,
    peak_in_flight=0,
    peak_queued=0,
)
LATER = replace(
    START,
    elapsed_s=10.0,
    sent=60,
    first=50,
    tokens=4000,
    finished=40,
    failed=2,
    in_flight=20,
    queued=7,
    peak_in_flight=32,
    peak_queued=9,
    ttft_s=0.1234,
    itl_s=0.0123,
)


def terminal() -> Console:
    return Console(
        file=io.StringIO(), force_terminal=True, width=120, color_system=None, legacy_windows=False
    )


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_progress_goes_to_stderr_and_nothing_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar(2) as bar:
        bar.describe("50 % shared")
        bar.update(LATER)
        bar.say("a line that stays [sic]")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "a line that stays [sic]" in captured.err
    assert "50 % shared: 60 of 100 sent" in captured.err


def test_where_nobody_watches_there_is_a_line_every_few_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar(100) as bar:
        for tick in range(100):
            bar.update(replace(START, elapsed_s=tick / 4))
    assert len(capsys.readouterr().err.splitlines()) == int(99 / 4 / LINE_EVERY_S)


def test_a_line_tells_counts_rates_latencies_queue_and_failures(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar(100) as bar:
        bar.update(START)
        bar.update(LATER)
    assert capsys.readouterr().err.strip() == (
        "60 of 100 sent · 6.0/s, 50 first tokens · 5.0/s, 4,000 tokens · 400/s, 40 finished · 4.0/s; "
        "10 s, 2 FAILED, TTFT 123.4 ms, ITL 12.30 ms, 20 in flight (peak 32), 7 queued (peak 9)"
    )


def test_on_a_terminal_there_is_a_bar_for_sent_first_tokens_tokens_and_finished() -> None:
    console = terminal()
    with ProgressBar(200, 8000, console=console) as bar:
        bar.describe("concurrency 50")
        bar.update(START)
        bar.update(LATER)
    text = written(console)
    for shown in ("sent", "60 / 200", "first tokens", "50 / 200", "4,000 / 8,000", "finished", "40 / 200"):
        assert shown in text
    assert "concurrency 50" in text
    assert "2 FAILED" in text


def test_bars_go_on_where_the_last_run_ended() -> None:
    console = terminal()
    with ProgressBar(200, console=console) as bar:
        bar.describe("first")
        bar.update(replace(LATER, sent=100, finished=100))
        bar.describe("second")
        bar.update(LATER)
    assert "160 / 200" in written(console)
    assert "140 / 200" in written(console)


def test_rates_are_of_the_last_second_and_never_negative() -> None:
    rates = Rates()
    assert rates.of("tokens") == ""
    for tenth in range(100):
        rates.add(
            replace(START, elapsed_s=tenth / 10, tokens=tenth if tenth < 50 else 50 + 20 * (tenth - 50))
        )
    assert rates.of("tokens") == " · 200/s"
    rates.add(replace(START, elapsed_s=10.0, tokens=0))
    assert rates.of("tokens") == " · 0.0/s"


def test_a_count_that_grows_more_slowly_than_once_a_second_has_a_rate_all_the_same() -> None:
    rates = Rates()
    for tenth in range(151):
        rates.add(replace(START, elapsed_s=tenth / 10, first=8 * (tenth // 40), in_flight=16))
    assert rates.of("first") == " · 2.6/s", "8 came 3.1 s ago"
    assert rates.of("finished") == " · 0.0/s"


def test_a_rate_below_one_is_not_rounded_to_nothing() -> None:
    rates = Rates()
    rates.add(START)
    rates.add(replace(START, elapsed_s=25.0, first=1))
    assert rates.of("first") == " · 0.04/s"


@pytest.mark.parametrize(
    ("what", "finished", "shown"),
    [
        ("sending", 80, "all sent: "),
        ("rate 4: sending", 80, "rate 4: all sent: "),
        ("repeat 1 of 2", 80, "repeat 1 of 2: "),
        ("sending", 79, "sending: "),
    ],
)
def test_once_nothing_is_left_to_send_nobody_is_said_to_be_sending(
    what: str, finished: int, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with ProgressBar(100) as bar:
        bar.describe(what)
        bar.update(replace(LATER, finished=finished, in_flight=20, queued=0))
    assert capsys.readouterr().err.startswith(shown)
