"""The command `prefixlab VERB …`: finds the verb, runs it, turns what went wrong into an exit code.

Owns the table of verbs and the one mapping from errors to exit codes: 0 done, 2 the command or its settings
are wrong, 3 a gate failed, 130 interrupted, 1 anything else. A verb is a module with

    SUMMARY: str                                    one line, for the list of verbs
    configure(parser: argparse.ArgumentParser)      adds its options
    run(args: argparse.Namespace) -> int            does the work, imports what it needs inside

Invariants: listing verbs imports no library but the standard one, so `--help` is instant. A reader of our
output that has seen enough (head, less) changes no exit code.
"""

from __future__ import annotations

import argparse
import io
import os
import stat
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, NoReturn, TextIO

from prefixlab import __version__
from prefixlab.core.config import check_environment, did_you_mean
from prefixlab.core.errors import ConfigError, GateError, PrefixlabError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

VerbTable = dict[str, "str | VerbTable"]

VERBS: VerbTable = {
    "demo": "prefixlab.cli.demo",
    "serve": "prefixlab.cli.serve",
    "bench": {
        "warm-cache": "prefixlab.cli.bench_warm_cache",
        "serve": "prefixlab.cli.bench_serve",
        "sweep": "prefixlab.cli.bench_sweep",
        "trace": "prefixlab.cli.bench_trace",
        "sessions": "prefixlab.cli.bench_sessions",
        "prefix-ratio": "prefixlab.cli.bench_prefix_ratio",
        "saturate": "prefixlab.cli.bench_saturate",
        "ab": "prefixlab.cli.bench_ab",
        "calibrate": "prefixlab.cli.bench_calibrate",
    },
    "doctor": "prefixlab.cli.doctor",
    "compare": "prefixlab.cli.compare",
    "gate": "prefixlab.cli.gate",
    "runs": "prefixlab.cli.runs",
    "report": "prefixlab.cli.report",
    "plot": "prefixlab.cli.plot",
    "trace": {
        "analyze": "prefixlab.cli.trace_analyze",
        "convert": "prefixlab.cli.trace_convert",
        "fetch": "prefixlab.cli.trace_fetch",
        "synthesize": "prefixlab.cli.trace_synthesize",
    },
}
"""Verb → module, or a table of further verbs."""

GROUP_SUMMARIES = {
    "bench": "measure a server: its speed, and what its prefix cache is worth",
    "trace": "look at recorded traffic, and make it anew",
}

ENGINE_LIBRARIES = {"torch", "safetensors", "tokenizers", "huggingface_hub", "jinja2"}
"""What `prefixlab[engine]` adds to the base install."""

DESCRIPTION = (
    "Serve language models with a radix prefix cache, and measure what any server's KV cache is worth."
)


class Parser(argparse.ArgumentParser):
    """Refuses instead of exiting, so that every refusal takes the same way out; abbreviates nothing."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

        self.why_refused: Callable[[str], str | None] = lambda option: None
        """Of an option this verb does not know, why it will not, where there is more to say."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}\n{self.prog} --help lists what there is")

    def parse_strictly(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse all of `words`; an unknown option is refused with the nearest known one."""
        args, unknown = self.parse_known_args(words)
        if unknown:
            option = unknown[0].partition("=")[0]
            if reason := self.why_refused(option):
                self.error(f"{option} {reason}")
            known = self.option_strings if option.startswith("-") else []
            kind = "option" if option.startswith("-") else "argument"
            self.error(f"unknown {kind} {option!r}{did_you_mean(option, known)}")
        return args

    @property
    def option_strings(self) -> list[str]:
        return list(self._option_string_actions)


class _Pipe(io.FileIO):
    """A pipe that leads nowhere once its reader is gone: the verb goes on, and says how it ended."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return super().write(data)


def main(words: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    if sys.stdout is None or sys.stderr is None:
        _open_closed_streams()
    sys.stdout, sys.stderr = _outliving_its_reader(sys.stdout), _outliving_its_reader(sys.stderr)
    try:
        code = run(list(sys.argv[1:] if words is None else words))
        sys.stdout.flush()
        return code
    except PrefixlabError as error:
        print(f"prefixlab: {error}", file=sys.stderr)
        return exit_code(error)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ENGINE_LIBRARIES:
            raise
        print(f"prefixlab: this needs {error.name}: pip install 'prefixlab[engine]'", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("prefixlab: interrupted", file=sys.stderr)
        return 130


def _outliving_its_reader(stream: TextIO) -> TextIO:
    """The process's own stream, if it is a pipe, as a _Pipe; any other as it is."""
    if stream not in (sys.__stdout__, sys.__stderr__) or not isinstance(stream, io.TextIOWrapper):
        return stream
    mode = os.fstat(stream.fileno()).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        return stream
    stream.flush()
    raw = _Pipe(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        raw if stream.write_through else io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _open_closed_streams() -> None:
    """Standard streams that our caller has closed lead nowhere: else the next file or socket would take their
    numbers, and what is printed would go there."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # the lowest number that is free is what each gets
    os.close(fd)
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def exit_code(error: PrefixlabError) -> int:
    if isinstance(error, ConfigError):
        return 2
    if isinstance(error, GateError):
        return 3
    return 1


def run(words: list[str]) -> int:
    """Walk down the table along `words`, then let the verb take the rest."""
    table, path = VERBS, ["prefixlab"]
    while True:
        name = words[0] if words else "--help"
        if name in ("-h", "--help"):
            print(table_help(table, path))
            return 0
        if name == "--version" and table is VERBS:
            print(f"prefixlab {__version__}")
            return 0
        if name not in table:
            kind = "option" if name.startswith("-") else "verb"
            raise ConfigError(
                f"unknown {kind} {name!r}{did_you_mean(name, [*table, '--help', '--version'])}\n"
                f"{' '.join(path)} --help lists what there is"
            )
        words, path, entry = words[1:], [*path, name], table[name]
        if isinstance(entry, str):
            module = import_module(entry)
            parser = make_parser(module, path)
            try:
                args = parser.parse_strictly(words)
            except SystemExit as done:  # --help, which argparse prints and leaves by
                return int(done.code or 0)
            check_environment(server_configs(), os.environ, also=("PREFIXLAB_TRACES",))
            return int(module.run(args))
        table = entry


def server_configs() -> tuple[type, ...]:
    """What `PREFIXLAB_…` variables set: the server, embedded or not."""
    from prefixlab.cli.embedded import engine_configs
    from prefixlab.server.config import ServerConfig

    return (*engine_configs(), ServerConfig)


def make_parser(module: ModuleType, path: Sequence[str]) -> Parser:
    """The parser of one verb; `path` is how it is called, `prefixlab` included."""
    parser = Parser(" ".join(path), module.SUMMARY)
    module.configure(parser)
    return parser


def table_help(table: VerbTable, path: Sequence[str]) -> str:
    """All verbs of a table with one line each."""
    width = max(map(len, table)) + 2
    lines = [f"usage: {' '.join(path)} VERB …", ""]
    lines += [DESCRIPTION if table is VERBS else GROUP_SUMMARIES[path[-1]], ""]
    lines += [f"  {name:<{width}}{summary(name, entry)}" for name, entry in table.items()]
    lines += ["", f"{' '.join(path)} VERB --help shows the options of a verb."]
    return "\n".join(lines)


def summary(name: str, entry: str | VerbTable) -> str:
    if isinstance(entry, str):
        return str(import_module(entry).SUMMARY)
    return f"{GROUP_SUMMARIES[name]} ({', '.join(entry)})"


if __name__ == "__main__":
    sys.exit(main())
