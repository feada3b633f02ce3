from __future__ import annotations

from html.parser import HTMLParser

from hypothesis import given, settings
from hypothesis import strategies as st

from prefixlab.bench.report.html.markup import Markup, el, table, together

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"))


class Reader(HTMLParser):
    """What a browser would make of it: tags, attributes, text."""

    def __init__(self, written: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.values: list[str | None] = []
        self.text = ""
        self.feed(written)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.values += [value for _, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


@settings(deadline=None)
@given(TEXT, TEXT)
def test_text_stays_text_inside_elements_and_attributes(text: str, value: str) -> None:
    read = Reader(el("p", text, title=value))
    assert (read.tags, read.text, read.values) == (["p"], text, [value])


def test_what_no_file_can_hold_is_replaced() -> None:
    assert el("p", "a\ud800b") == "<p>a?b</p>"


def test_markup_is_taken_as_it_is_and_nothing_is_nothing() -> None:
    assert together(["a<b", None, Markup("<br>"), [1, el("b", "x")]]) == "a&lt;b<br>1<b>x</b>"


def test_an_attribute_can_be_a_switch_or_left_out() -> None:
    assert el("input", type="text", hidden=True, value=None, disabled=False, class_="c", aria_label="l") == (
        '<input type="text" hidden class="c" aria-label="l">'
    )


def test_a_table_names_its_rows_and_columns() -> None:
    written = table("all", ["name", "value"], [["a", "1"]])
    assert '<th scope="col">name</th>' in written
    assert '<th scope="row">a</th><td>1</td>' in written
    assert "<caption>all</caption>" in written
