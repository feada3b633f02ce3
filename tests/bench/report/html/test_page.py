from __future__ import annotations

import base64
import hashlib
import json
import re
from importlib import resources
from pathlib import Path

import pytest

from prefixlab.bench.compare.difference import Difference, Finding
from prefixlab.bench.report.html import page as page_file
from prefixlab.bench.report.html.entries import entries_of, sweep_of
from prefixlab.bench.report.html.page import report
from prefixlab.bench.report.html.parts import judgements
from prefixlab.core.errors import ConfigError
from tests.bench.report.html.runs import HOSTILE, a_run, a_search, a_sweep, an_ab
from tests.bench.saved.saved_runs import save_metrics, save_run

ASSETS = resources.files("prefixlab.bench.report.html") / "assets"


def sections(page: str) -> list[str]:
    return re.findall(r'<section id="([a-z]+)">', page)


def data_of(page: str) -> dict[str, dict[str, object]]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page)
    assert found is not None
    return dict(json.loads(found[1]))


def test_one_run_has_the_sections_it_has_data_for(tmp_path: Path) -> None:
    page = report([a_run(tmp_path / "run")])
    shown = ["figures", "distributions", "timeline", "settings", "definitions"]
    assert [name for name in sections(page) if name != "notes"] == shown
    assert list(data_of(page)["charts"]) == ["cdf-ttft", "cdf-tpot", "cdf-itl", "cdf-e2e"]


def test_a_sweep_has_curves_against_what_was_swept(tmp_path: Path) -> None:
    page = report([a_sweep(tmp_path / "sweep")])
    assert "<h2>Against max-concurrency</h2>" in page
    names = list(data_of(page)["charts"])
    assert names[:5] == ["curve-throughput", "curve-ttft", "curve-tpot", "curve-e2e", "curve-hits"]
    assert len(data_of(page)["timelines"]) == 4


def test_several_runs_are_compared_with_the_first(tmp_path: Path) -> None:
    page = report([a_run(tmp_path / "before", label="before"), a_run(tmp_path / "after", label="after")])
    assert "<strong>after</strong> against <strong>before</strong>" in page
    assert "comparison" in sections(page)


def test_failures_stand_at_the_head_and_in_a_table(tmp_path: Path) -> None:
    page = report([a_run(tmp_path / "run", failed=3)])
    assert "3 of 203 requests failed" in page
    assert "<td>http_status</td><td>3</td><td><code>HTTP 503: full" in page


def test_a_run_that_did_not_end_says_so(tmp_path: Path) -> None:
    assert "not finished" in report([a_run(tmp_path / "run", finished=False)])


def test_a_run_that_was_killed_can_be_shown_as_far_as_it_went(tmp_path: Path) -> None:
    page = report([save_run(tmp_path / "run", finished=None)])
    assert "not finished" in page
    assert "timeline" not in sections(page)


def test_the_doctors_page_is_there_worst_first(tmp_path: Path) -> None:
    def check(name: str, status: str) -> dict[str, str]:
        return {"name": name, "status": status, "figure": "f", "limit": "l", "distorts": "d", "remedy": "r"}

    doctor = {"grade": "C", "checks": [check("stamps", "fine"), check("failures", "bad")]}
    page = report([a_run(tmp_path / "run", doctor=doctor)])
    assert "Trust: C" in page
    assert page.index('<th scope="row">failures</th>') < page.index('<th scope="row">stamps</th>')


def test_what_the_server_said_of_itself_is_on_the_same_axis(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    told = "# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running 3\n"
    save_metrics(run, {float(beat): told for beat in range(20)})
    (timeline,) = data_of(report([run]))["timelines"]
    assert [chart["title"] for chart in timeline["charts"]][2:] == ["Server: requests"]


def test_text_of_strangers_is_never_markup(tmp_path: Path) -> None:
    page = report(
        [
            a_run(
                tmp_path / "run",
                failed=1,
                label=HOSTILE,
                model_id=HOSTILE,
                verdict=HOSTILE,
                notes=[HOSTILE],
                failures={HOSTILE: 1},
            )
        ]
    )
    assert "<img" not in page
    assert page.count("<script") == 2
    assert page.count("</script>") == 2


def test_the_policy_allows_what_is_in_the_page_and_nothing_else(tmp_path: Path) -> None:
    page = report([a_run(tmp_path / "run")])
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    allowed = policy[1].replace("&#x27;", "'")
    assert allowed.startswith("default-src 'none'; ")
    for tag in ("script", "style"):
        content = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert content is not None
        digest = base64.b64encode(hashlib.sha256(content[1].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}';" in allowed
    assert " style=" not in page.replace(".style=", "")
    assert "unsafe" not in allowed


@pytest.mark.parametrize("name", [*page_file.SCRIPTS, *page_file.STYLES])
def test_no_asset_ends_its_own_element(name: str) -> None:
    text = (ASSETS / name).read_text()
    assert "</script" not in text.lower() and "</style" not in text.lower() and "<!--" not in text


def test_vendored_files_are_the_ones_that_were_taken() -> None:
    written = (ASSETS / "VENDORED.md").read_text()
    for name in ("uPlot.iife.min.js", "uPlot.min.css"):
        assert hashlib.sha256((ASSETS / name).read_bytes()).hexdigest() in written


def test_names_tell_runs_apart(tmp_path: Path) -> None:
    entries = entries_of([a_sweep(tmp_path / "a"), a_sweep(tmp_path / "b")])
    assert entries[0].name == "a: max-concurrency 1"
    assert len({entry.name for entry in entries}) == 8
    sweep = sweep_of(entries)
    assert sweep is not None
    assert (sweep.option, sweep.values, list(sweep.lines)) == ("max-concurrency", (1, 2, 4, 8), ["a", "b"])


def test_what_was_measured_twice_is_on_two_lines(tmp_path: Path) -> None:
    sweep = sweep_of(
        entries_of([a_sweep(tmp_path / "one" / "a", (1, 2)), a_sweep(tmp_path / "two" / "a", (1, 2))])
    )
    assert sweep is not None
    assert list(sweep.lines) == ["a", "a #2"]
    assert all(entry is not None for entries in sweep.lines.values() for entry in entries)


def test_runs_of_one_label_are_numbered(tmp_path: Path) -> None:
    entries = entries_of([a_run(tmp_path / "a", label="x"), a_run(tmp_path / "b", label="x")])
    assert [entry.name for entry in entries] == ["x", "x #2"]
    assert sweep_of(entries) is None


def test_a_folder_is_shown_once_however_often_it_is_named(tmp_path: Path) -> None:
    run = a_run(tmp_path / "a")
    assert len(entries_of([run, tmp_path, run])) == 1


def test_where_there_is_no_run_it_says_where(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(str(tmp_path))):
        report([tmp_path])


def test_the_ledger_names_the_cause_and_its_evidence(tmp_path: Path) -> None:
    ledger = {
        "verdict": "evicted",
        "consistent": False,
        "evidence": ["the server dropped 40 pages"],
        "advice": "give it more memory",
        "expected_hit_rate": 0.5,
        "answers_hit_rate": 0.25,
        "server_hit_rate": None,
    }
    page = report([a_run(tmp_path / "run", ledger=ledger)])
    assert "Cache: evicted" in page
    assert "<td>50.0 %</td><td>25.0 %</td><td>n/a</td>" in page
    assert "the server dropped 40 pages" in page and "give it more memory" in page


def test_the_page_of_an_ab_gives_its_verdict_and_its_paired_table_and_draws_no_line_between_arms(
    tmp_path: Path,
) -> None:
    page = report([an_ab(tmp_path / "ab")])
    assert "<h1>A/B: slow, fast" in page
    assert '<p class="answer">fast against slow: median TTFT -10.0 ms</p>' in page
    assert "B (fast) against A (slow)" in page
    assert '</span> undecided</span> <span class="why">too few to tell: 4</span>' in page
    assert "curves" not in sections(page)


def test_the_page_of_a_search_gives_the_load_it_found_and_leaves_out_what_it_began_with(
    tmp_path: Path,
) -> None:
    page = report([a_search(tmp_path / "search")])
    assert "<h1>Saturation" in page and '<p class="answer">holds 45.3 req/s</p>' in page
    assert '<span class="value">45.3</span>' in page and "95 % sure: 33.7 … 47.3" in page
    assert "meets (99 %)" in page
    assert [entry.name for entry in entries_of([tmp_path / "search"])] == [
        "request-rate 40",
        "request-rate 50",
    ]
    alone = entries_of([tmp_path / "search" / "000-capacity"])
    assert len(alone) == 1 and alone[0].search is None


def test_runs_that_are_no_points_of_a_sweep_are_not_called_one(tmp_path: Path) -> None:
    a_sweep(tmp_path / "all" / "sweep", (1, 2))
    a_run(tmp_path / "all" / "other", measured_hit_rate=0.9, verdict="more than expected")
    a_search(tmp_path / "all" / "search")
    page = report([tmp_path / "all"])
    assert "<h1>5 runs" in page
    assert "2 of 5 runs; the others were no points of it." in page
    assert re.search(r'class="beside">more than expected: 1 of \d', page)


def test_better_is_not_praised_where_a_side_is_not_to_be_trusted(tmp_path: Path) -> None:
    before = a_run(tmp_path / "before", doctor={"grade": "B", "checks": []})
    ledger = {"verdict": "warm contamination", "consistent": False}
    after = a_run(tmp_path / "after", ledger=ledger, doctor={"grade": "C", "checks": []})
    page = report([before, after])
    assert "but B has cache: warm contamination" in page and "but B has trust: C" in page
    assert "but A has" not in page
    better = Difference(
        figure="mean_ttft_ms",
        a=2.0,
        b=1.0,
        change=-0.5,
        low=-0.6,
        high=-0.4,
        level=0.95,
        method="20 and 20 blocks",
        num_values=(20, 20),
        higher_is_better=False,
        finding=Finding.BETTER,
    )
    assert "badge good" in judgements.differences_table("sure", [better])
    assert "badge good" not in judgements.differences_table("doubted", [better], doubted=True)


def test_the_comparison_says_which_run_is_a_and_why_it_is_undecided(tmp_path: Path) -> None:
    page = report([a_run(tmp_path / "before"), a_run(tmp_path / "after")])
    assert "B (after) against A (before)" in page
    assert re.search(r'undecided</span> <span class="why">[^<]+</span>', page)


def test_only_what_speaks_against_a_run_makes_anything_wrong(tmp_path: Path) -> None:
    def check(name: str, status: str) -> dict[str, str]:
        told = {"figure": "f", "limit": "l", "distorts": f"wrong by {name}", "remedy": "r"}
        return {"name": name, "status": status, **told}

    checks = [check("one", "fine"), check("two", "unknown"), check("three", "caution")]
    page = report([a_run(tmp_path / "run", doctor={"grade": "B", "checks": checks})])
    assert "wrong by three" in page and "wrong by one" not in page and "wrong by two" not in page
    assert "<summary>2 checks in which nothing was found</summary>" in page


def test_the_hit_rate_is_among_the_first_columns(tmp_path: Path) -> None:
    page = report([a_run(tmp_path / "run", measured_hit_rate=0.5)])
    heads = re.findall(r'<th scope="col">([^<]*)</th>', page)
    assert heads[:3] == ["run", "ok / planned", "hit rate"]
