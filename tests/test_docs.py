"""Docs cannot drift from the program: the reference is generated, and what examples name exists."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefixlab.bench.ledger.check import Verdict
from prefixlab.bench.metrics.summary import as_result_keys, summarise
from prefixlab.bench.records.record import Outcome, Record
from prefixlab.bench.targets.cold_start import Coldness
from prefixlab.cli import docs
from prefixlab.cli.main import Parser, make_parser

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").rglob("*.md"))]
PARSERS: dict[str, Parser] = {" ".join(path[1:]): make_parser(module, path) for path, module in docs.verbs()}
GROUPS = {" ".join(verb.split()[:depth]) for verb in PARSERS for depth in range(len(verb.split()))}


def code(page: Path) -> Iterator[str]:
    """Lines of code blocks, fenced or indented, with continued lines joined; and `code` inside prose."""
    text = page.read_text()
    for block in re.findall(r"^```\w*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        yield from re.sub(r"\\\n\s*", " ", block).splitlines()
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    yield from re.findall(r"`([^`\n]+)`", prose)
    yield from (line.strip() for line in prose.splitlines() if line.startswith("    "))


def commands(page: Path) -> Iterator[list[str]]:
    """The words after `prefixlab` of every example that calls it."""
    for line in code(page):
        called = re.match(r"(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\S*/)?prefixlab( .*)?$", line.strip())
        if called:
            yield shlex.split((called[1] or "").split(" | ")[0].split(" > ")[0], comments=True)


def split_verb(words: list[str]) -> tuple[str, list[str]]:
    for depth in (2, 1):
        if " ".join(words[:depth]) in PARSERS:
            return " ".join(words[:depth]), words[depth:]
    return " ".join(words[:1]), words[1:]


def test_the_reference_is_what_the_parsers_say_now() -> None:
    assert docs.PAGE.read_text() == docs.render(), "run: python -m prefixlab.cli.docs"


def test_a_switch_has_one_spelling_to_turn_it_on_and_one_to_turn_it_off() -> None:
    for parser in PARSERS.values():
        for action in parser._actions:
            if isinstance(action, argparse.BooleanOptionalAction):
                on, off = action.option_strings
                assert off == on.replace("--", "--no-", 1)


def test_a_stale_reference_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(docs, "PAGE", tmp_path / "cli.md")
    assert docs.main(["--check"]) == 1
    assert "is stale" in capsys.readouterr().err
    assert docs.main([]) == 0
    assert docs.main(["--check"]) == 0


@pytest.mark.parametrize("verb", PARSERS)
def test_every_verb_and_every_option_has_help(verb: str) -> None:
    parser = PARSERS[verb]
    assert parser.description
    for action in parser._actions:
        assert action.help and action.help.strip(), f"{verb}: {action.option_strings} has no help"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_examples_name_verbs_and_options_that_exist(page: Path) -> None:
    for words in commands(page):
        if not words or words[0] in ("VERB", "--help", "--version") or words == ["VERB", "…"]:
            continue
        verb, rest = split_verb(words)
        assert verb in PARSERS or verb in GROUPS, f"{page.name}: prefixlab {' '.join(words)}: no such verb"
        if verb in PARSERS:
            known = PARSERS[verb].option_strings
            for word in rest:
                option = word.partition("=")[0]
                assert not option.startswith("--") or option in known, f"{page.name}: {verb} has no {option}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_measuring_names_every_verdict_every_cold_start_and_every_metric() -> None:
    text = (ROOT / "docs" / "measuring.md").read_text()
    for word in [*Verdict, *Coldness]:
        assert f"| {word.value} |" in text
    keys = as_result_keys(summarise([Record("r", Outcome.UNSENT, intended_s=0.0)], 1))
    for metric in {key.removesuffix("_ms").partition("_")[2] for key in keys if key.startswith("mean_")}:
        assert f"`{metric}`" in text, f"docs/measuring.md does not define {metric}"


def test_make_targets_named_in_docs_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for page in PAGES:
        for line in code(page):
            named = re.match(r"(?:\$ )?make ([a-z-]+)", line)
            assert not named or named[1] in targets, f"{page.name}: make {named and named[1]}"


def test_the_python_of_the_readme_runs_and_shows_a_hit() -> None:
    [snippet] = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    done = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    cold, warm = done.stdout.splitlines()
    assert cold.startswith("0 of ") and not warm.startswith("0 of ")
