"""A server that is gone, as its run's folder remembers it: enough to report what was measured.

Owns what stands in for the server then. Asks nothing of anybody.

Invariant: nothing can be sent through it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

import msgspec

from prefixlab.bench.config.serve import ServeConfig
from prefixlab.bench.config.target import DEFAULT_VOCAB_SIZE
from prefixlab.bench.loadgen.driver import Drive, OnProgress
from prefixlab.bench.loadgen.plan import Load, Planned
from prefixlab.bench.records.run_dir import ENVIRONMENT, RunDir
from prefixlab.bench.targets.control import FlushAnswer, ServerFacts
from prefixlab.bench.targets.endpoint import Endpoint
from prefixlab.bench.workloads.tokens import Vocabulary
from prefixlab.bench.workloads.wording import IdWording
from prefixlab.bench.workloads.words import WordWording
from prefixlab.core.errors import TargetError

GONE = "the server is not asked any more"


class GoneControl:
    """Implements `targets.control.Control`."""

    def __init__(self, facts: ServerFacts) -> None:
        self._facts = facts

    def facts(self) -> ServerFacts:
        return self._facts

    def flush(self) -> FlushAnswer:
        return FlushAnswer(False, GONE)

    def metrics_text(self) -> str | None:
        return None


class GoneDriver:
    """Implements `loadgen.driver.Driver`."""

    def run(
        self,
        plan: Iterable[Planned],
        load: Load,
        *,
        on_progress: OnProgress | None = None,
        folder: Path | None = None,
    ) -> Drive:
        raise TargetError(GONE)


def remembered_endpoint(folder: RunDir, config: ServeConfig) -> Endpoint:
    """The server of the run in `folder`, as it was when the run began."""
    known = folder.read_json(ENVIRONMENT) or {}
    facts = _facts(known.get("server"))
    backend = str(known.get("backend") or config.target.backend or facts.backend)
    vocabulary = Vocabulary.of_size(facts.vocab_size or DEFAULT_VOCAB_SIZE, "as the run's folder remembers")
    return Endpoint(
        url=str(known.get("url")),
        backend=backend,
        model=known.get("model"),
        driver=GoneDriver(),
        num_workers=config.target.num_workers,
        control=GoneControl(facts),
        facts=facts,
        warnings=(facts.warning,) if facts.warning else (),
        wording=WordWording() if backend == "openai-chat" else IdWording(vocabulary),
        page_size=known.get("page_size"),
        expects_miss="--expect-miss" if config.target.expect_miss else facts.expects_miss,
        ignore_eos=config.ignores_eos(backend),
        extra_body=config.target.extra_body(),
    )


def _facts(known: object) -> ServerFacts:
    names = {field.name for field in fields(ServerFacts)}
    given = {name: value for name, value in known.items() if name in names} if isinstance(known, dict) else {}
    return msgspec.convert({"backend": "unknown", **given}, ServerFacts)
