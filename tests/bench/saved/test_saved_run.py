from __future__ import annotations

from pathlib import Path

from prefixlab.bench.saved.saved_run import find_runs


def folder(path: Path, *, is_run: bool) -> None:
    path.mkdir(parents=True)
    for name in ("config.json", "summary.json"):
        (path / name).write_text('{"finished": true}')
    if is_run:
        (path / "segments").mkdir()


def test_a_sweep_is_its_points_though_its_own_folder_has_a_summary(tmp_path: Path) -> None:
    folder(tmp_path / "sweep", is_run=False)
    for point in ("000-rate=1", "001-rate=2"):
        folder(tmp_path / "sweep" / point, is_run=True)
    assert [run.path.name for run in find_runs(tmp_path / "sweep")] == ["000-rate=1", "001-rate=2"]
