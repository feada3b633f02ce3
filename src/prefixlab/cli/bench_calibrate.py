"""`prefixlab bench calibrate`: how far this client, on this machine, can be believed.

Owns the verb: flags, what is printed where, where the result is kept, the exit code.
"""

from __future__ import annotations

import argparse

SUMMARY = "measure the client itself: its error and its ceiling on this machine"


def configure(parser: argparse.ArgumentParser) -> None:
    from prefixlab.bench.config.calibrate import CalibrateConfig
    from prefixlab.core.config import add_flags

    parser.description = (
        f"{SUMMARY}.\n\nDrives a server of its own that logs when it wrote each token, and compares. "
        "Benchmarks warn when they go past the ceiling found here."
    )
    add_flags(parser, CalibrateConfig, "load")


def run(args: argparse.Namespace) -> int:
    import sys

    from prefixlab.bench.calibrate.ladder import Judgement
    from prefixlab.bench.calibrate.report import ceiling, describe, ladder_table
    from prefixlab.bench.calibrate.run import run_calibrate
    from prefixlab.bench.calibrate.store import save, save_try
    from prefixlab.bench.config.calibrate import CalibrateConfig
    from prefixlab.bench.loadgen.socket_driver import SocketDriver
    from prefixlab.bench.targets.dialects import CompletionsDialect
    from prefixlab.core.clock import wall_time_label
    from prefixlab.core.config import resolve
    from prefixlab.core.errors import GateError

    def completions_driver(url: str) -> SocketDriver:
        return SocketDriver(url, CompletionsDialect())

    config = resolve(CalibrateConfig, vars(args), {})
    found = run_calibrate(config, completions_driver, lambda line: print(line, file=sys.stderr, flush=True))
    print(describe(found.asked, found.asked_judgement))
    print(f"\n{ladder_table(found.rungs)}\n\n{ceiling(found.calibration, found.rungs)}")
    if found.calibration is None:
        if found.rungs[-1].judgement is Judgement.METRONOME:
            save_try(found.asked.health.num_workers, wall_time_label())
        raise GateError("there is nothing to keep: the client was proven at no load that was tried")
    print(f"kept in {save(found.calibration)}", file=sys.stderr)
    return 0
