"""Our own run directories as runs: one per repeat, request by request.

Owns which settings are the question and which the circumstances. What it was asked with (prompts, lengths,
load, sampling, model) is the question; server, versions and machine are circumstances, and seeds with them. A
cache that held what nobody sent in this run, or a server that served others too, makes it another question.

Invariant: a repeat is a run of its own, its requests named as in any other repeat.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from prefixlab.bench.compare.run import ALL, Run, ours
from prefixlab.bench.doctor.diagnosis import grade_of_keys
from prefixlab.bench.ledger.causes import Cause
from prefixlab.bench.records.table import RecordTable
from prefixlab.bench.saved.saved_run import SavedRun

_REPEAT = re.compile(r"(?:^|(?<=\W))repeat(\d+)-")
_NO_QUESTION = frozenset({"target", "report", "engine", "resolved", "witness", "points"})
_NOT_ASKED = frozenset({"seed", "repeats", "flush_cache", "ready_check_timeout_sec", "request_id_prefix"})
_TOP_LEVEL = ("verb",)
_CONTAMINATED = (Cause.WARM, Cause.LYING_RESET, Cause.FOREIGN)
_DOUBTFUL_GRADES = ("C", "F")


def read_ours(saved: SavedRun) -> list[Run]:
    """A run per repeat. ConfigError where its records cannot be read."""
    table, summary = saved.table, saved.summary
    of_repeats = _repeats(table) if _num_repeats(saved) > 1 else [table]
    open_loop = summary.get("loop") == "open"
    question, circumstances = _question(saved), _circumstances(saved)
    return [
        Run(
            source=str(saved.path),
            client=f"prefixlab {saved.environment.get('prefixlab', '')}".rstrip(),
            key=dict(saved.swept),
            table=rows,
            known={},
            definitions=ours(*ALL),
            question=question | lengths(rows),
            circumstances=circumstances,
            open_loop=open_loop,
            planned=len(rows),
            failed=int((~rows.ok).sum()),
            notes=_notes(saved),
        )
        for rows in of_repeats
    ]


def lengths(table: RecordTable) -> dict[str, Any]:
    """What was really sent and answered, on average over the requests that succeeded."""
    if not table.ok.any():
        return {}
    return {
        "prompt-tokens": round(float(table.prompt_tokens[table.ok].mean()), 1),
        "output-tokens": round(float(table.num_output_tokens[table.ok].mean()), 1),
    }


def _num_repeats(saved: SavedRun) -> int:
    load = saved.config.get("load") or {}
    return int(saved.summary.get("repeats") or load.get("repeats") or 1)


def _repeats(table: RecordTable) -> list[RecordTable]:
    """Their ids say which repeat they belong to."""
    found = [_REPEAT.search(request_id) for request_id in table.request_id]
    numbers = np.array([int(match[1]) if match else 0 for match in found])
    named = replace(table, request_id=[_REPEAT.sub("", name, count=1) for name in table.request_id])
    return [named.select(numbers == number) for number in np.unique(numbers)]


def _question(saved: SavedRun) -> dict[str, Any]:
    asked = {name: saved.config.get(name) for name in _TOP_LEVEL}
    for section, options in saved.config.items():
        if isinstance(options, Mapping) and section not in _NO_QUESTION:
            asked |= {
                name.replace("_", "-"): value for name, value in options.items() if name not in _NOT_ASKED
            }
    cause = (saved.summary.get("ledger") or {}).get("cause")
    contaminated = cause in {one.value for one in _CONTAMINATED}
    asked["what else the cache had seen"] = cause if contaminated else "nothing, as far as the ledger tells"
    asked["model"] = (saved.config.get("resolved") or {}).get("model") or saved.environment.get("model")
    return {name: value for name, value in asked.items() if name not in saved.swept}


def _circumstances(saved: SavedRun) -> dict[str, Any]:
    environment, summary = saved.environment, saved.summary
    found = {
        "url": environment.get("url"),
        "api": environment.get("backend"),
        **{f"server {name}": value for name, value in (environment.get("server") or {}).items()},
        **{f"engine {name}": value for name, value in (saved.config.get("engine") or {}).items()},
        "client machine": environment.get("client_machine"),
        "commit of prefixlab": environment.get("git_commit"),
        "seed": environment.get("seed"),
        "started": environment.get("started"),
        "hit rate": _percent(summary.get("measured_hit_rate")),
        "cache": summary.get("verdict"),
    }
    return {name: value for name, value in found.items() if value is not None}


def _percent(share: Any) -> str | None:
    return f"{share:.1%}" if isinstance(share, float) else None


def _notes(saved: SavedRun) -> tuple[str, ...]:
    notes = []
    if not saved.finished:
        notes.append(f"{saved.path.name} did not come to its end")
    if saved.summary.get("saturated"):
        notes.append(f"{saved.path.name} was saturated: its latencies grow with its length")
    if (grade := grade_of_keys(saved.summary)) in _DOUBTFUL_GRADES:
        notes.append(f"{saved.path.name} is of trust {grade}: prefixlab doctor {saved.path} says why")
    return tuple(notes)
