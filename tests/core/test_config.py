from __future__ import annotations

import argparse
from dataclasses import dataclass

import pytest

from prefixlab.core.config import (
    add_flags,
    as_public_dict,
    check_environment,
    did_you_mean,
    resolve,
    setting,
)
from prefixlab.core.errors import ConfigError


@dataclass(frozen=True)
class Sample:
    page_size: int = setting(16, "tokens per page", aliases=("--block",))
    policy: str = setting("lru", "what goes first", choices=("lru", "lfu"))
    force_miss: bool = setting(False, "never hit, 100 % of the time")
    timeout_s: float | None = setting(None, "seconds to wait")
    api_key: str | None = setting(None, "key clients must send", secret=True)
    header: tuple[str, ...] = setting((), "header to send", metavar="K=V", secret=True)

    def __post_init__(self) -> None:
        if self.page_size < 1:
            raise ConfigError("--page-size must be at least 1")


def parse(*words: str, environ: dict[str, str] | None = None) -> Sample:
    parser = argparse.ArgumentParser()
    add_flags(parser, Sample)
    return resolve(Sample, vars(parser.parse_args(list(words))), environ or {})


def test_defaults_are_stated_once_in_the_dataclass() -> None:
    assert parse() == Sample()


def test_a_flag_wins_over_the_environment_and_that_over_the_default() -> None:
    environ = {"PREFIXLAB_PAGE_SIZE": "4", "PREFIXLAB_FORCE_MISS": "1", "PREFIXLAB_TIMEOUT_S": "2.5"}
    assert parse(environ=environ) == Sample(page_size=4, force_miss=True, timeout_s=2.5)
    assert parse("--page-size", "8", "--no-force-miss", environ=environ).page_size == 8
    assert not parse("--no-force-miss", environ=environ).force_miss
    assert parse("--block", "2").page_size == 2


def test_a_list_takes_several_words_and_may_be_given_again() -> None:
    assert parse("--header", "a=1", "b=2 c", "--header", "d=3").header == ("a=1", "b=2 c", "d=3")
    assert parse(environ={"PREFIXLAB_HEADER": "a=1 b=2"}).header == ("a=1", "b=2")
    assert parse().header == ()


@pytest.mark.parametrize(
    ("variable", "text"),
    [("PAGE_SIZE", "many"), ("FORCE_MISS", "maybe"), ("POLICY", "best"), ("TIMEOUT_S", "soon")],
)
def test_a_bad_environment_value_is_an_error_that_names_the_variable(variable: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"PREFIXLAB_{variable}='{text}'"):
        parse(environ={f"PREFIXLAB_{variable}": text})


def test_a_bad_flag_ends_the_program_with_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--page-size", "many")
    assert "--page-size" in capsys.readouterr().err


def test_the_config_checks_itself_however_it_was_made() -> None:
    with pytest.raises(ConfigError, match="--page-size"):
        parse(environ={"PREFIXLAB_PAGE_SIZE": "0"})


def test_help_shows_each_default_once_and_survives_percent_signs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--help")
    shown = capsys.readouterr().out
    assert "(default: 16)" in shown
    assert "100 % of the time" in shown


def test_help_shows_words_as_they_are_typed_and_no_empty_default() -> None:
    @dataclass(frozen=True)
    class Listed:
        ratios: tuple[str, ...] = setting(("0.1", "0.3"), "some")
        prefix: str = setting("", "put before")

    parser = argparse.ArgumentParser()
    add_flags(parser, Listed)
    text = parser.format_help()
    assert "some (default: 0.1 0.3)" in text
    assert text.count("(default") == 1


def test_secrets_are_masked_where_a_config_is_shown() -> None:
    assert as_public_dict(Sample(api_key="hunter2"))["api_key"] == "***"
    assert as_public_dict(Sample(header=("Authorization=x",)))["header"] == "***"
    assert (as_public_dict(Sample())["api_key"], as_public_dict(Sample())["header"]) == (None, ())


def test_a_misspelt_variable_is_refused_with_the_nearest_known_one() -> None:
    check_environment(
        [Sample],
        {"PREFIXLAB_PAGE_SIZE": "4", "PREFIXLAB_TRACES": "x", "OTHER": "y"},
        also=["PREFIXLAB_TRACES"],
    )
    with pytest.raises(ConfigError, match="PREFIXLAB_FORCE_MIS; did you mean 'PREFIXLAB_FORCE_MISS'"):
        check_environment([Sample], {"PREFIXLAB_FORCE_MIS": "1"})


def test_a_suggestion_disregards_case_and_is_silent_where_nothing_is_near() -> None:
    assert did_you_mean("qwen3-0.6b", ["tiny", "Qwen3-0.6B"]) == "; did you mean 'Qwen3-0.6B'?"
    assert did_you_mean("zzz", ["tiny"]) == ""


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("--num-promts", "--num-prompts"),
        ("--max-concurency", "--max-concurrency"),
        ("--max-concurrnecy", "--max-concurrency"),
        ("--max_concurrency", "--max-concurrency"),
        ("--concurrency", "--max-concurrency"),
        ("-sed", "--seed"),
        ("--skip-chat", "--skip-chat-template"),
        ("--best-of", None),
        ("--probe-interval", None),
        ("--skip-test", None),
        ("--dir", None),  # of two
        ("--x", None),
        ("PREFIXLAB_PORT", None),
        ("PREFIXLAB_HOTS", "PREFIXLAB_HOST"),
    ],
)
def test_only_a_slip_or_a_piece_of_a_name_is_suggested(word: str, meant: str | None) -> None:
    known = ["--num-prompts", "--max-concurrency", "--seed", "--result-dir", "--run-dir", "--no-insecure"]
    known += ["--skip-chat-template", "--interrupt", "PREFIXLAB_HOST"]
    assert did_you_mean(word, known) == ("" if meant is None else f"; did you mean {meant!r}?")
