"""HTML made of functions: what is text stays text, because only `Markup` is taken as it is.

Owns escaping. Knows no run and no figure.

Invariant: every `str` that is not `Markup` is escaped, wherever it stands: labels, model names, errors and
prompts come from strangers.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

_VOID = frozenset({"meta", "input", "br", "hr"})


class Markup(str):
    """HTML that is ready to be written."""

    __slots__ = ()


Child = str | int | None | Iterable["Child"]
"""What may stand inside an element: text, markup, nothing, or several of these."""


def el(tag: str, *children: Child, **attributes: str | int | bool | None) -> Markup:
    """One element. Attributes are given with `_` for `-`, and behind a name that Python has for itself; True
    is an attribute without a value, None and False are none."""
    written = "".join(_attribute(name, value) for name, value in attributes.items())
    if tag in _VOID:
        return Markup(f"<{tag}{written}>")
    return Markup(f"<{tag}{written}>{together(children)}</{tag}>")


def together(child: Child) -> Markup:
    """One after another."""
    if child is None:
        return Markup("")
    if isinstance(child, Markup):
        return child
    if isinstance(child, str | int):
        return Markup(escape(str(child)))
    return Markup("".join(map(together, child)))


def escape(text: str) -> str:
    """Also without what no file of UTF-8 can hold."""
    return html.escape(text.encode("utf-8", "replace").decode("utf-8"), quote=True)


def table(
    caption: str, heads: Sequence[str], rows: Iterable[Sequence[Child]], *, classes: str | None = None
) -> Markup:
    """A table that can be read aloud: its first column names the rows."""
    head = el("tr", [el("th", name, scope="col") for name in heads])
    body = [el("tr", el("th", row[0], scope="row"), [el("td", cell) for cell in row[1:]]) for row in rows]
    written = el("table", el("caption", caption), el("thead", head), el("tbody", body), class_=classes)
    return el("div", written, class_="scroll", tabindex=0, role="region", aria_label=caption)


def folded(summary: Child, *children: Child, opened: bool = False) -> Markup:
    """Shown on demand; opened when printed."""
    return el("details", el("summary", summary), *children, open=opened)


def _attribute(name: str, value: str | int | bool | None) -> str:
    if value is None or value is False:
        return ""
    name = name.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'
