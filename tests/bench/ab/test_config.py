from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixlab.bench.ab.config import ROUNDS, AbConfig
from prefixlab.bench.config.load import LoadConfig
from prefixlab.core.errors import ConfigError


def test_an_arm_is_a_name_and_options_of_bench_serve() -> None:
    words = ("a:base-url=http://one:8000,max-concurrency=4", "b:disable_ignore_eos,--goodput=ttft:500")
    assert AbConfig(arm=words).settings() == {
        "a": ["--base-url=http://one:8000", "--max-concurrency=4"],
        "b": ["--disable-ignore-eos", "--goodput=ttft:500"],
    }


def test_an_arm_may_differ_in_nothing() -> None:
    assert AbConfig(arm=("a", "b:")).settings() == {"a": [], "b": []}


def test_a_comma_within_a_value_stays_in_it() -> None:
    words = ('a:extra-request-body={"x":1,"y":[2,3]},max-concurrency=2', "b")
    assert AbConfig(arm=words).settings()["a"] == [
        '--extra-request-body={"x":1,"y":[2,3]}',
        "--max-concurrency=2",
    ]


@settings(deadline=None)
@given(st.text(max_size=30), st.text(max_size=30))
def test_any_two_words_are_read_or_refused_by_name(one: str, other: str) -> None:
    try:
        arms = AbConfig(arm=(one, other)).settings()
    except ConfigError as error:
        assert "--arm" in str(error)
    else:
        assert len(arms) == 2


@pytest.mark.parametrize(
    ("given_settings", "why"),
    [
        ({"arm": ("a",)}, "--arm a stands alone"),
        ({"arm": ("a", "a:page-size=1")}, "names a twice"),
        ({"arm": ("=x", "b")}, "--arm takes NAME:KEY=VALUE"),
        ({"arm": ("a", "b"), "off_url": "http://x"}, "--off-url is for the arms"),
        ({"rounds": 0}, "--rounds must be at least 1"),
        ({"chunk": 0}, "--chunk must be at least 1"),
        ({"rounds": 4, "until_ci": "3%"}, "--max-rounds"),
        ({"until_ci": "3"}, "--until-ci 3: write 3%"),
        ({"until_ci": "0%"}, "--until-ci must lie between"),
        ({"duration": 0.0}, "--duration must be above 0"),
        ({"figure": ("tfft",)}, "is no figure; did you mean"),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_flag(given_settings: dict[str, object], why: str) -> None:
    with pytest.raises(ConfigError, match=why.replace("(", r"\(")):
        AbConfig(**given_settings)  # type: ignore[arg-type]


def test_at_low_load_turns_are_short() -> None:
    ab = AbConfig()
    assert ab.most_rounds == ROUNDS
    assert ab.chunk_of(LoadConfig(max_concurrency=1)) == 4
    assert ab.chunk_of(LoadConfig(max_concurrency=8)) == 32
    assert ab.chunk_of(LoadConfig(request_rate=5.0)) == 100
    assert AbConfig(chunk=7).chunk_of(LoadConfig(request_rate=5.0)) == 7


def test_who_goes_on_until_it_is_sure_has_a_limit_all_the_same() -> None:
    assert AbConfig(until_ci="3%", max_rounds=70).most_rounds == 70
    assert AbConfig(until_ci="3%").half_width == 0.03
    assert [str(figure) for figure in AbConfig(figure=("ttft_p90", "throughput")).figures] == [
        "p90 TTFT",
        "output throughput",
    ]
