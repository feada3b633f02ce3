from __future__ import annotations

import csv
import json
import socket
from pathlib import Path

import pytest

from prefixlab.cli.main import main
from tests.bench.fake_server import FakeServer

SMALL = ["--random-input-len", "40", "--random-output-len", "4", "--disable-tqdm"]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def sweep(server: FakeServer, *words: str) -> int:
    return main(["bench", "sweep", "--base-url", server.url, *SMALL, *words])


def only_run() -> Path:
    (folder,) = Path("runs").iterdir()
    return folder


def table_of(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "sweep.csv").read_text().splitlines()))


def test_every_point_starts_cold_and_stands_in_one_table(
    fake_server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(fake_server, "--max-concurrency", "1,2", "--output-file", "out.jsonl") == 0
    shown = capsys.readouterr().out
    assert "concurrency" in shown and shown.count("note: cold start proven") == 1
    assert fake_server.num_flushes == 2
    folder = only_run()
    rows = table_of(folder)
    assert [(row["max-concurrency"], row["completed"], row["verdict"]) for row in rows] == [
        ("1", "10", "consistent"),
        ("2", "10", "consistent"),
    ]
    lines = [json.loads(line) for line in (folder / "sweep.jsonl").read_text().splitlines()]
    assert [line["swept"] for line in lines] == [{"max-concurrency": 1}, {"max-concurrency": 2}]
    assert len(Path("out.jsonl").read_text().splitlines()) == 2
    for name in ("000-max-concurrency=1", "001-max-concurrency=2"):
        assert json.loads((folder / name / "summary.json").read_text())["finished"] is True


def test_what_a_server_was_found_to_be_is_said_once(
    fake_server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_server.behaviour.info = {"prefixlab_version": "1"}
    assert sweep(fake_server, "--max-concurrency", "1,2", "--num-prompts", "2", "--no-run-dir") == 0
    assert capsys.readouterr().err.count("is a prefixlab server") == 1


@pytest.mark.parametrize("more", [[], ["--append-result"]])
def test_every_point_has_its_file_named_as_vllms_client_does(
    fake_server: FakeServer, more: list[str]
) -> None:
    words = ["--request-rate", "500,501", "--num-prompts", "2", "--no-run-dir", "--label", "a"]
    assert sweep(fake_server, *words, "--save-result", "--result-dir", "out", *more) == 0
    files = sorted(Path("out").iterdir())
    assert [path.name.startswith(f"a-50{n}.0qps-") for n, path in enumerate(files)] == [True, True]
    assert [json.loads(path.read_text())["completed"] for path in files] == [2, 2]


def test_points_that_would_have_one_name_have_two_files(fake_server: FakeServer) -> None:
    words = ["--num-prompts", "1,2,3", "--max-concurrency", "1", "--no-run-dir", "--save-result"]
    assert sweep(fake_server, *words, "--result-dir", "out") == 0
    assert sorted(json.loads(path.read_text())["completed"] for path in Path("out").iterdir()) == [1, 2, 3]


def prompts(server: FakeServer) -> set[tuple[int, ...]]:
    """The measured ones: probes are longer."""
    return {tuple(body["input_ids"]) for body in server.bodies if len(body["input_ids"]) == 40}


def test_a_points_prompts_do_not_depend_on_which_others_run(fake_server: FakeServer) -> None:
    assert sweep(fake_server, "--max-concurrency", "2", "--no-run-dir") == 0
    alone = prompts(fake_server)
    fake_server.reset()
    assert sweep(fake_server, "--max-concurrency", "1,2", "--no-run-dir") == 0
    assert alone < prompts(fake_server) and len(prompts(fake_server)) == 20
    assert not Path("runs").exists()


def test_several_servers_are_compared_at_the_same_points(
    fake_server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--target", f"east={fake_server.url}", f"west={fake_server.url}", "--max-concurrency", "1,2"]
    assert main(["bench", "sweep", *SMALL, *words]) == 0
    rows = table_of(only_run())
    assert [(row["target"], row["max-concurrency"]) for row in rows] == [
        *(("east", "1"), ("east", "2"), ("west", "1"), ("west", "2"))
    ]
    assert len(prompts(fake_server)) == 20, "the same ones for both"
    assert "east" in capsys.readouterr().out


def test_a_sweep_that_broke_off_goes_on_and_measures_no_point_twice(
    fake_server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    # 2 probes and 10 requests at the first point; then the server fails the second point's probe.
    fake_server.break_after(13)
    words = ["--run-dir", "kept", "--save-result", "--result-dir", "out"]
    assert sweep(fake_server, "--max-concurrency", "1,2", *words) == 1
    captured = capsys.readouterr()
    assert "the probe request failed" in captured.err and "concurrency" in captured.out
    assert "prefixlab bench sweep --resume kept" in captured.err
    assert "note: not measured: 001-max-concurrency=2" in captured.out
    assert main(["bench", "serve", "--resume", "kept"]) == 2
    assert "prefixlab bench sweep --resume kept" in capsys.readouterr().err
    fake_server.reset()
    assert main(["bench", "sweep", "--resume", "kept", "--disable-tqdm"]) == 0
    assert len(prompts(fake_server)) == 10
    rows = table_of(Path("kept"))
    assert [row["completed"] for row in rows] == ["10", "10"]
    assert len(list(Path("out").iterdir())) == 2, "one file per point, also after going on"
    assert main(["bench", "sweep", "--resume", "kept"]) == 2
    assert "that run is finished" in capsys.readouterr().err
    assert main(["bench", "sweep", "--resume", "kept", "--osl", "9"]) == 2
    assert "leave out --random-output-len" in capsys.readouterr().err


def test_every_server_is_asked_before_any_is_measured(
    fake_server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: nobody answers
        gone = f"west=http://127.0.0.1:{unused.getsockname()[1]}"
        words = ["--target", f"east={fake_server.url}", gone, "--max-concurrency", "1,2"]
        assert main(["bench", "sweep", *SMALL, *words]) == 1
    assert f"--target {gone}: could not connect" in capsys.readouterr().err
    assert not fake_server.bodies and not Path("runs").exists()


def test_a_dry_run_adds_up_no_prompts_that_only_the_server_can_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "hello"}\n')
    file = ["--dataset-name", "custom", "--dataset-path", str(path), "--max-concurrency", "1,2"]
    assert main(["bench", "sweep", "--port", "9", *file, "--dry-run"]) == 0
    total = capsys.readouterr().out.splitlines()[-1]
    assert total.startswith("2 points: 2 requests, prompts as long as they are, 512 output tokens;")


def test_a_dry_run_lists_the_points_and_their_cost(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "sweep", "--port", "9", *SMALL, "--dry-run"]) == 0
    *points, total = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1].split(",")[0] for line in points] == [
        *("10 requests", "10 requests", "15 requests", "30 requests", "150 requests", "300 requests"),
        "750 requests",
    ]
    assert total.startswith("7 points: 1,265 requests, 50,600 prompt tokens, 5,060 output tokens")
    words = ["--request-rate", "5,10", "--burstiness", "inf", "--num-prompts", "51", "--dry-run"]
    assert main(["bench", "sweep", "--port", "9", *SMALL, *words]) == 0
    assert "at least 15 s of arrivals" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--port", "9", "--max-concurrency", "1,0"], "--max-concurrency must be at least 1, not 0"),
        (["--port", "9", "--max-concurrency", "1,x"], "'x' is not a whole number"),
        (["--port", "9", "--target", "a=http://x"], "leave out --base-url, --host and --port"),
        (["--max-concurrency", "1", "4"], "4 stands alone: the values of a list have commas between"),
        (["--base-url", "http://a,http://b"], "--target NAME=URL"),
        (["--target", "plots=http://x"], "that name is taken"),
        (["--port", "9", "--zip", "--max-concurrency", "1,2", "--osl", "1,2,3"], "--zip takes lists"),
        (["--port", "9", "--result-filename", "x", "--save-result"], "use --output-file"),
        (["--resume", "nowhere"], "there is no run"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_before_anything_is_sent(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "sweep", *words]) == 2
    assert complaint in capsys.readouterr().err


def test_a_sweep_whose_server_refuses_every_request_leaves_nothing_behind(
    fake_server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_server.behaviour.known_endpoints = frozenset({"models"})
    fake_server.behaviour.vocab_size = 100
    assert sweep(fake_server, "--backend", "openai", "--max-concurrency", "1,2") == 1
    assert "is out of vocabulary" in capsys.readouterr().err
    assert len(fake_server.bodies) == 1
    assert not list(Path("runs").iterdir())


def test_a_point_at_which_nothing_succeeded_is_exit_code_1(
    fake_server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_server.break_after(10)
    words = ["--max-concurrency", "1,2", "--no-flush-cache", "--style", "json"]
    assert sweep(fake_server, *words) == 1
    captured = capsys.readouterr()
    assert "no request succeeded at 001-max-concurrency=2: HTTP 503" in captured.err
    assert [json.loads(line)["failed"] for line in captured.out.splitlines()] == [0, 10]
