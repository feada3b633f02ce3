"""The README in Chinese says what the README says: same sections, commands, figures, pictures and tables."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$|((?:^ {4}[^\n]*\n)+)", flags=re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^(#+) .*$", flags=re.MULTILINE)


def prose(page: Path) -> str:
    return BLOCK.sub("", page.read_text())


def blocks(page: Path) -> Iterator[tuple[str, list[str]]]:
    """The language and lines of each code block; a comment, however long, is one `#`."""
    for language, fenced, indented in BLOCK.findall(page.read_text()):
        if indented:  # a tree of folders: what follows the name is a comment
            yield "tree", re.findall(r"^ +\S+", indented, flags=re.MULTILINE)
        else:
            bare = re.sub(r"(^|[ \t])[ \t]*#.*$", r"\1#", fenced, flags=re.MULTILINE)
            yield (
                language,
                [line for line in re.sub(r"(^#\n)+", "#\n", bare, flags=re.M).splitlines() if line],
            )


def sections(page: Path) -> list[str]:
    """The page cut at its headings, code included; a `#` line of a code block is no heading."""
    text = page.read_text()
    inside = {at for block in BLOCK.finditer(text) for at in range(*block.span())}
    cuts = [found.start() for found in HEADING.finditer(text) if found.start() not in inside]
    return [text[a:b] for a, b in zip(cuts, [*cuts[1:], len(text)], strict=True)]


def figures(text: str) -> Counter[str]:
    return Counter(re.findall(r"[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?", text))


def quoted(text: str) -> Counter[str]:
    """`code` inside prose, and where links lead (but for those between the two languages)."""
    plain = BLOCK.sub("", text)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", plain)]
    links = re.findall(r"(?<!!)\[[^\]]*\]\(([^)]+)\)", plain)
    return Counter(spans + [link for link in links if link not in (ENGLISH.name, CHINESE.name)])


def rows_of_tables(page: Path) -> list[int]:
    return [len(table.splitlines()) for table in re.findall(r"(?:^\|.*\n)+", prose(page), flags=re.MULTILINE)]


def assert_same(what: str, english: Counter[str], chinese: Counter[str]) -> None:
    missing, added = english - chinese, chinese - english
    assert not missing and not added, f"{what}: not in Chinese {dict(missing)}, only there {dict(added)}"


PAIRS = [
    pytest.param(english, chinese, id=english.splitlines()[0].strip("# "))
    for english, chinese in zip(sections(ENGLISH), sections(CHINESE), strict=False)
]


def test_each_language_links_to_the_other_under_the_title() -> None:
    assert ENGLISH.read_text().splitlines()[2] == f"[简体中文]({CHINESE.name})"
    assert CHINESE.read_text().splitlines()[2] == f"[English]({ENGLISH.name})"


def test_headings_are_as_many_and_of_the_same_levels() -> None:
    levels = [[len(level) for level in HEADING.findall(prose(page))] for page in (ENGLISH, CHINESE)]
    assert levels[0] == levels[1]
    assert len(levels[0]) == len(sections(ENGLISH)) == len(sections(CHINESE)) == len(PAIRS)


def test_code_blocks_hold_the_same_commands_in_the_same_order() -> None:
    assert list(blocks(CHINESE)) == list(blocks(ENGLISH))


def test_images_are_the_same() -> None:
    shown = [re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text()) for page in (ENGLISH, CHINESE)]
    assert shown[0] == shown[1]


def test_tables_have_the_same_number_of_rows() -> None:
    assert rows_of_tables(CHINESE) == rows_of_tables(ENGLISH)


@pytest.mark.parametrize(("english", "chinese"), PAIRS)
def test_every_figure_of_a_section_is_in_the_other_language_as_often(english: str, chinese: str) -> None:
    assert_same("figures", figures(english), figures(chinese))


@pytest.mark.parametrize(("english", "chinese"), PAIRS)
def test_quoted_code_and_links_of_a_section_are_the_same(english: str, chinese: str) -> None:
    assert_same("code and links", quoted(english), quoted(chinese))
