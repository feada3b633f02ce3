"""`prefixlab gate A B`: exit code 3 if B is worse than A by more than it may be.

Owns the verb: flags, exit code. The rule is `prefixlab.bench.compare.gate`'s.

Invariant: 0 where the gate passes, 3 where it fails, 2 where A and B cannot be judged against each other, or
not one figure is decided.
"""

from __future__ import annotations

import argparse

SUMMARY = "fail if run B is worse than run A by more than is allowed, for CI"


def configure(parser: argparse.ArgumentParser) -> None:
    from prefixlab.bench.compare.config import GateConfig
    from prefixlab.cli.compare import WHAT_SIDES_ARE, add_sides
    from prefixlab.core.config import add_flags

    parser.description = (
        f"{SUMMARY}.\n\n{WHAT_SIDES_ARE}\n\nA figure fails if it is worse by more than its limit and surely "
        "worse at all (its interval leaves out 0). It passes if\nits whole interval is within the limit. "
        "What is neither is undecided, which only --strict takes for a failure.\n\nExit code: 0 passed, 3 "
        "failed, 2 not to be judged (nothing in common, not the same question, or not one\nfigure "
        "decided, as of runs that are too short or too noisy)."
    )
    add_sides(parser)
    add_flags(parser, GateConfig)


def run(args: argparse.Namespace) -> int:
    import sys

    from prefixlab.bench.compare.config import GateConfig
    from prefixlab.bench.compare.difference import MARGIN
    from prefixlab.bench.compare.figures import default_figures
    from prefixlab.bench.compare.gate import judge
    from prefixlab.bench.compare.report import as_json, question_of, ruling, show_gate
    from prefixlab.cli.compare import compared, wide_console
    from prefixlab.core.config import resolve
    from prefixlab.core.errors import ConfigError, GateError

    config = resolve(GateConfig, vars(args), {})
    figures = [*(config.chosen() or default_figures()), *config.more_figures()]
    comparison = compared(args, config, list(dict.fromkeys(figures)), MARGIN)
    question = question_of(comparison)
    if question and not config.any_question:
        raise ConfigError(
            f"A and B were not asked the same, so neither is the other's baseline: {question}; "
            "--any-question judges them all the same"
        )
    gate = judge(comparison, config.limit, strict=config.strict)
    if args.json:
        sys.stdout.write(as_json(comparison, gate))
    else:
        show_gate(wide_console(), gate, comparison)
    if gate.fails:
        raise GateError(ruling(gate))
    if not gate.decided:
        raise ConfigError(f"{ruling(gate)}; longer runs, or more of them, would tell")
    return 0
