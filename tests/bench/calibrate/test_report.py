from __future__ import annotations

from prefixlab.bench.calibrate.ladder import Judgement, Rung
from prefixlab.bench.calibrate.report import ceiling, describe, ladder_table
from tests.bench.calibrate.helpers import comparison
from tests.bench.calibrate.test_store import calibration


def rung(streams: int, judgement: Judgement, itl_p99_s: float = 0.00002) -> Rung:
    return Rung(streams, streams / 0.01, comparison(itl_p99_s=itl_p99_s), judgement)


def test_a_run_is_described_with_what_was_true_what_was_off_and_what_was_lost() -> None:
    text = describe(comparison(itl_p99_s=0.0000123, lost=3), Judgement.WITHIN)
    assert "50 compared, 3 lost" in text
    assert "true p50 100.000 ms" in text
    assert "p99 0.012 ms" in text
    assert "within the limit (0.100 ms of ITL at p99)" in text
    assert "looked late     n/a" in text, "a client without kernel stamps does not know"


def test_every_rung_is_a_line_that_says_how_it_ended() -> None:
    header, *lines = ladder_table(
        [rung(10, Judgement.WITHIN), rung(2000, Judgement.ERRED, 0.0005)]
    ).splitlines()
    assert header.split("  ")[0].strip() == "streams"
    assert lines[0].strip().startswith("10") and lines[0].endswith("within the limit")
    assert lines[1].startswith("  2,000") and "0.500 ms" in lines[1] and lines[1].endswith("past the limit")


def test_the_ceiling_is_one_sentence_with_its_numbers() -> None:
    text = ceiling(calibration(), [rung(10, Judgement.ERRED)])
    assert text.startswith("ceiling: 50,000 tokens/s, and 500 streams, with 1 client process:")


def test_a_ceiling_that_was_the_servers_is_a_lower_bound() -> None:
    text = ceiling(calibration(at_least=True, num_workers=2), [rung(10, Judgement.METRONOME)])
    assert text.startswith("ceiling: at least 50,000 tokens/s, and 500 streams, with 2 client processes:")


def test_without_a_ceiling_it_says_whose_fault_that_was() -> None:
    assert "the client errs" in ceiling(None, [rung(10, Judgement.ERRED)])
    assert "is this machine busy?" in ceiling(None, [rung(10, Judgement.METRONOME)])
