"""docs/cli.md, made from the parsers that read the command line: `python -m prefixlab.cli.docs [--check]`.

Owns the form of that page. Reads the parsers' options rather than their formatted help, whose line breaks
differ between versions of Python.

Invariant: the page lists every verb and every option, and says nothing that is not in a parser.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

from prefixlab.cli.main import DESCRIPTION, GROUP_SUMMARIES, VERBS, Parser, VerbTable, make_parser

PAGE = Path(__file__).parents[3] / "docs" / "cli.md"
HEADER = f"""# Command line

<!-- Made by `python -m prefixlab.cli.docs`. Do not edit: change the options, then make it again. -->

{DESCRIPTION}

Data goes to stdout, talk and progress to stderr. Exit codes: 0 done, 1 failed, 2 the command or its settings
are wrong, 3 a gate (`--strict`) failed, 130 interrupted. A setting of the server can also come from the
environment, as `PREFIXLAB_` and its name in capitals (`PREFIXLAB_PAGE_SIZE=64`); a flag wins over it.
"""


def render() -> str:
    """The whole page."""
    return "\n".join([HEADER, *_sections(VERBS, ["prefixlab"])])


def verbs(
    table: VerbTable = VERBS, path: Sequence[str] = ("prefixlab",)
) -> Iterator[tuple[list[str], ModuleType]]:
    """Every verb that runs: how it is called, and its module."""
    for name, entry in table.items():
        if isinstance(entry, str):
            yield [*path, name], import_module(entry)
        else:
            yield from verbs(entry, [*path, name])


def _sections(table: VerbTable, path: list[str]) -> Iterator[str]:
    for name, entry in table.items():
        called = [*path, name]
        if isinstance(entry, str):
            yield _verb(called, import_module(entry))
        else:
            yield f"## {' '.join(called)}\n\n{_sentence(GROUP_SUMMARIES[name])}\n"
            yield from _sections(entry, called)


def _verb(path: list[str], module: ModuleType) -> str:
    parser = make_parser(module, path)
    level = "#" * len(path)
    lines = [f"{level} {' '.join(path)}", "", _sentence(parser.description or module.SUMMARY), ""]
    positional = " ".join(str(action.metavar or action.dest) for action in parser._get_positional_actions())
    lines += [f"    {' '.join(path)} {positional + ' ' if positional else ''}[options]", ""]
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if not isinstance(action, argparse._HelpAction)]
        if actions:
            lines += [
                f"**{(group.title or 'options').capitalize()}**",
                "",
                "| option | meaning |",
                "|---|---|",
            ]
            lines += [_row(parser, action) for action in actions]
            lines.append("")
    return "\n".join(lines)


def _row(parser: Parser, action: argparse.Action) -> str:
    value = ""
    if action.choices is not None:
        value = " " + "\\|".join(map(str, action.choices))
    elif action.nargs != 0:
        value = f" {action.metavar}"
    names = [f"`{name}`" for name in action.option_strings] or [f"`{action.metavar}`"]
    if action.option_strings:
        names[0] = f"`{action.option_strings[0]}{value}`"
    meaning = (action.help or "").replace("%%", "%").replace("|", "\\|")
    return f"| {', '.join(names)} | {meaning} |"


def _sentence(text: str) -> str:
    text = text.rstrip(".")
    return text[0].upper() + text[1:] + "."


def main(words: Sequence[str]) -> int:
    """Write the page, or with --check only say whether it is what would be written."""
    page = render()
    if list(words) == ["--check"]:
        if PAGE.exists() and PAGE.read_text() == page:
            return 0
        print(f"{PAGE} is stale: run python -m prefixlab.cli.docs", file=sys.stderr)
        return 1
    PAGE.write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
