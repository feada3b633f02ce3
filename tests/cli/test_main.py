from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from prefixlab import __version__
from prefixlab.cli.main import VERBS, VerbTable, main
from prefixlab.core.errors import (
    ConfigError,
    EngineError,
    GateError,
    PrefixlabError,
    QueueFullError,
    TargetError,
)


def modules(table: VerbTable = VERBS) -> list[str]:
    found = []
    for entry in table.values():
        found += [entry] if isinstance(entry, str) else modules(entry)
    return found


def a_verb(monkeypatch: pytest.MonkeyPatch, run: object) -> None:
    """Make `prefixlab probe` run `run`."""
    module = ModuleType("probe_verb")
    module.SUMMARY = "a verb of this test"  # type: ignore[attr-defined]
    module.configure = lambda parser: parser.add_argument("--number", type=int)  # type: ignore[attr-defined]
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "probe_verb", module)
    monkeypatch.setitem(VERBS, "probe", "probe_verb")


def test_help_lists_every_verb_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--help"], ["-h"]):
        assert main(words) == 0
        shown = capsys.readouterr().out
        for verb in VERBS:
            assert any(line.split()[0] == verb for line in shown.splitlines() if line.startswith("  "))


def test_a_group_lists_its_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench"]) == 0
    shown = capsys.readouterr().out
    assert "warm-cache" in shown and "trace" in shown


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"prefixlab {__version__}\n"


@pytest.mark.parametrize(
    "words", [["serve", "--help"], ["bench", "warm-cache", "-h"], ["bench", "trace", "-h"]]
)
def test_every_verb_explains_itself(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    assert "usage: prefixlab " + " ".join(words[:-1]) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sevre"], "unknown verb 'sevre'; did you mean 'serve'?"),
        (["bench", "warm-cach"], "unknown verb 'warm-cach'; did you mean 'warm-cache'?"),
        (["--verison"], "unknown option '--verison'; did you mean '--version'?"),
        (
            ["bench", "warm-cache", "--page-sise", "1"],
            "unknown option '--page-sise'; did you mean '--page-size'?",
        ),
        (
            ["bench", "warm-cache", "--num-prompt=1"],
            "unknown option '--num-prompt'; did you mean '--num-prompts'?",
        ),
        (["serve", "extra"], "unknown argument 'extra'"),
        (["xyzzy"], "unknown verb 'xyzzy'\n"),
        (["bench", "warm-cache", "--page-size", "many"], "'many' is not a whole number"),
        (["bench", "warm-cache", "--backend", "vlm"], "invalid choice: 'vlm'"),
    ],
)
def test_what_is_not_known_is_refused_with_the_nearest(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "--help lists what there is" in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("--x is wrong"), 2),
        (GateError("not consistent"), 3),
        (TargetError("HTTP 500"), 1),
        (EngineError("no memory"), 1),
        (QueueFullError("full"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_every_error_has_its_exit_code_and_its_message(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(args: object) -> int:
        raise error

    a_verb(monkeypatch, run)
    assert main(["probe"]) == code
    assert (str(error) if isinstance(error, PrefixlabError) else "interrupted") in capsys.readouterr().err


def test_a_bug_of_ours_is_not_dressed_up_as_the_users_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(args: object) -> int:
        raise AssertionError("a bug")

    a_verb(monkeypatch, run)
    with pytest.raises(AssertionError):
        main(["probe"])


def test_a_verb_gets_its_arguments_and_decides_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[SimpleNamespace] = []

    def run(args: SimpleNamespace) -> int:
        seen.append(args)
        return 7

    a_verb(monkeypatch, run)
    assert main(["probe", "--number", "5"]) == 7
    assert seen[0].number == 5


def test_every_verb_module_keeps_the_protocol() -> None:
    for name in modules():
        module = import_module(name)
        assert isinstance(module.SUMMARY, str) and len(module.SUMMARY) < 110 and "\n" not in module.SUMMARY
        assert callable(module.configure) and callable(module.run)


def test_help_loads_none_of_the_libraries_the_verbs_need() -> None:
    """So it is instant. In a fresh interpreter."""
    script = (
        "import sys; from prefixlab.cli.main import main; main(['--help']); main(['bench'])\n"
        "heavy = {'torch', 'httpx', 'matplotlib', 'rich', 'starlette', 'uvicorn', 'numpy', 'msgspec'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_output_into_a_closed_pipe_ends_quietly() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    words = [sys.executable, "-m", "prefixlab.cli.main", "--help"]
    done = subprocess.run(words, stdout=write_end, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write_end)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("printed", ["print('x' * 100_000)", "from rich import print; print('x' * 100)"])
@pytest.mark.parametrize(("ending", "code"), [("return 3", 3), ("raise GateError('no')", 3), ("return 0", 0)])
def test_a_reader_that_has_seen_enough_changes_no_exit_code(
    printed: str, ending: str, code: int, unbuffered: str
) -> None:
    script = (
        "import sys, types\n"
        "from prefixlab.cli import main\n"
        "from prefixlab.core.errors import GateError\n"
        "def run(args):\n"
        f"    {printed}; sys.stdout.flush(); print('and more', flush=True)\n"
        f"    {ending}\n"
        "verb = types.ModuleType('probe_verb')\n"
        "verb.SUMMARY, verb.configure, verb.run = '', lambda parser: None, run\n"
        "sys.modules['probe_verb'] = verb\n"
        "main.VERBS['probe'] = 'probe_verb'\n"
        "sys.exit(main.main(['probe']))\n"
    )
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [sys.executable, "-c", script],
        stdout=write_end,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
    )
    os.close(write_end)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["serve", "--port", "0"], "prefixlab: this needs torch: pip install 'prefixlab[engine]'"),
        (
            ["bench", "warm-cache"],
            "prefixlab: the embedded engine is not installed: pip install 'prefixlab[engine]'",
        ),
        (["demo"], "prefixlab: the embedded engine is not installed: pip install 'prefixlab[engine]'"),
    ],
)
def test_without_the_engine_a_verb_that_needs_it_says_what_to_install(
    words: list[str], message: str, tmp_path: Path
) -> None:
    script = (
        "import sys\n"
        "for name in ('torch', 'safetensors', 'tokenizers', 'huggingface_hub', 'jinja2'):\n"
        "    sys.modules[name] = None\n"  # as if it were not installed
        "from prefixlab.cli.main import main\n"
        f"sys.exit(main({words!r}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_module_missing_for_another_reason_is_a_bug_and_shown_as_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(args: object) -> int:
        raise ModuleNotFoundError("No module named 'prefixlab.typo'", name="prefixlab.typo")

    a_verb(monkeypatch, run)
    with pytest.raises(ModuleNotFoundError, match="typo"):
        main(["probe"])


def test_a_misspelt_environment_variable_stops_a_verb_before_it_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a_verb(monkeypatch, lambda args: 0)
    assert main(["probe"]) == 0
    monkeypatch.setenv("PREFIXLAB_FORCE_MIS", "1")
    assert main(["probe"]) == 2
    assert "PREFIXLAB_FORCE_MIS; did you mean 'PREFIXLAB_FORCE_MISS'?" in capsys.readouterr().err


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_with_its_streams_closed_a_verb_still_does_its_work(closed: str) -> None:
    """…and what it prints goes into no file it opened."""
    command = f"{sys.executable} -m prefixlab.cli.main --version {closed}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
