"""What a measured point amounts to: its records judged, its cache checked, and what a reader should know.

Owns putting the judgement together, and the sentences about how the point was asked for. What figures mean is
`metrics/point.py`'s; how requests were sent, and in which order things happened, `serve.py`'s.

Invariant: nothing is asked of anybody: the same Measured gives the same result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prefixlab.bench.calibrate.store import calibration_notes
from prefixlab.bench.config.serve import ServeConfig
from prefixlab.bench.doctor.page import examined
from prefixlab.bench.ledger.account import Account
from prefixlab.bench.ledger.check import Verdict, delivery_notes
from prefixlab.bench.ledger.holders import Holders, holders_of
from prefixlab.bench.ledger.ledger import Ledger, reconcile
from prefixlab.bench.ledger.seen import Seen
from prefixlab.bench.ledger.unchecked import FINDS_ITSELF, FORGETS_OTHERWISE, Known, explained
from prefixlab.bench.loadgen.health import ClientHealth
from prefixlab.bench.metrics.point import PointResult, PointSettings, evaluate
from prefixlab.bench.metrics.turns import num_behind_failures
from prefixlab.bench.records.record import Outcome
from prefixlab.bench.records.table import CODE, RecordTable
from prefixlab.bench.report.console import counted
from prefixlab.bench.runs.point import Asker, Outline, outline
from prefixlab.bench.runs.sessions import corrected, has_sessions
from prefixlab.bench.targets.cold_start import Coldness, ColdStart
from prefixlab.bench.targets.endpoint import Endpoint
from prefixlab.bench.targets.several import SeveralEndpoints
from prefixlab.bench.traces.fidelity import Fidelity, fidelity_of
from prefixlab.core.clock import wall_time_label

ABOUT = 0.2
"""Of the tokens asked for: so far off they may be as the server counts prompts in words."""


@dataclass(frozen=True)
class Stretch:
    """What was sent from one start to one end, or to a break.

    Attributes:
        was_killed: of what was under way then nothing is known.
    """

    table: RecordTable
    was_killed: bool = False


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A point that is over, or was ended.

    Attributes:
        repeats: of each what was planned, and a row per request.
        stretches: of each, in which it was sent.
        cold: the cache was to be emptied before every repeat.
        coldness: of the last stretch that began, perhaps in another process; None where nothing was tried.
        lie: of a reset before it that was none.
        seen: of all stretches, from the side.
        notes: taken on the way; `notes_at_end` come behind those about the figures.
        gone: why the server could not be asked any more.
    """

    asker: Asker
    repeats: Sequence[tuple[Outline, RecordTable]]
    stretches: Sequence[Sequence[Stretch]]
    health: ClientHealth
    swept: Mapping[str, Any]
    cold: bool
    coldness: Coldness | None
    lie: str | None
    seen: Seen
    salt: int
    notes: Sequence[str]
    notes_at_end: Sequence[str]
    interrupted: bool
    gone: str | None

    @property
    def endpoint(self) -> Endpoint:
        return self.asker.endpoint

    @property
    def config(self) -> ServeConfig:
        return self.asker.config

    @property
    def planned(self) -> Outline:
        """Of the first repeat: the others differ in their prompts alone."""
        return self.repeats[0][0]

    @property
    def was_emptied(self) -> bool:
        """The cache, before the last stretch that began."""
        return self.coldness in (Coldness.PROVEN, Coldness.ASSUMED)


def judged(run: Measured) -> PointResult:
    """See the module."""
    tables = [_table(run, number) for number in range(len(run.repeats))]
    for (planned, _), table in zip(run.repeats, tables, strict=True):
        assert len(table) == planned.num_requests, f"{planned.num_requests} planned, {len(table)} recorded"
    stretches = RecordTable.concat(tables)
    bounded = run.asker.capacity_note(run.planned)
    settings = point_settings(run.endpoint, run.config, run.planned, run.swept)
    result = evaluate(
        replace(settings, facts={**settings.facts, **_cache_facts(run)}),
        tables,
        run.health,
        notes=_notes(run, stretches, bounded),
        interrupted=run.interrupted or run.gone is not None,
        stretches=_broken_off(run),
    )
    check, why_unchecked = explained(result.check, stretches, _known(run))
    fidelity = _fidelity(run, result)
    result = replace(result, check=check, fidelity=fidelity)
    result = replace(result, ledger=_ledger(run, result, tables))
    at_end = [] if fidelity is None else [f"fidelity: {fidelity}"]
    at_end += [*run.notes_at_end, *why_unchecked]
    if bounded is not None and run.config.load.max_concurrency != 1 and check.verdict is Verdict.MORE:
        at_end.append(FORGETS_OTHERWISE)
    result = replace(result, notes=(*result.notes, *at_end, *_result_notes(run, result)))
    return examined(result, ignores_eos=run.endpoint.ignore_eos)


def _table(run: Measured, number: int) -> RecordTable:
    """Of later turns of sessions, what to expect is known only now that they were answered."""
    planned, table = run.repeats[number]
    sketches = planned.workload.sketches
    if sketches is None or sketches.continues is None or run.asker.is_chat:
        return table
    ids = run.asker.request_ids(planned, number)
    return corrected(table, sketches, ids, run.endpoint.expected_cached_tokens)


def _cache_facts(run: Measured) -> dict[str, Any]:
    """What the server's cache was before, and in which unit it counts."""
    return {
        "page_size": run.endpoint.page_size,
        "cold_start": None if run.coldness is None else run.coldness.value,
        "salt": run.salt or None,
    }


def _ledger(run: Measured, result: PointResult, tables: Sequence[RecordTable]) -> Ledger:
    endpoint, salted = run.endpoint, run.coldness is Coldness.SALTED and bool(run.salt)
    account = Account(
        table=result.table,
        check=result.check,
        page_size=endpoint.page_size,
        capacity_tokens=endpoint.facts.capacity_tokens,
        footprint_tokens=_footprint_tokens(run),
        rounding_tokens=len(result.table) * (endpoint.page_size or 1),
        num_servers=len(endpoint.each) if isinstance(endpoint, SeveralEndpoints) else 1,
        caching_off=endpoint.facts.caching_off,
        none_expected=endpoint.expects_miss,
        is_cold=run.coldness is Coldness.PROVEN,
        is_salted=salted,
        lie=run.lie,
        seen=run.seen,
    )
    if result.check.verdict in (
        Verdict.LESS,
        Verdict.MORE,
    ):  # of use only where there is something to explain
        account = replace(account, holders=_holders(run, tables))
    return reconcile(account)


def _holders(run: Measured, tables: Sequence[RecordTable]) -> Holders:
    parts = []
    for number, ((planned, _), table) in enumerate(zip(run.repeats, tables, strict=True)):
        workload = planned.workload
        if workload.sketches is None:
            parts.append(Holders.unknown(len(table)))
            continue
        wording = None if workload.made_up is None else run.asker.wording
        ids = run.asker.request_ids(planned, number)
        parts.append(holders_of(workload.sketches, wording, table, ids, workload.servers))
    return Holders.concat(parts)


def _footprint_tokens(run: Measured) -> int | None:
    """What a cache must hold to forget nothing: of one emptied before each repeat, the largest of them."""
    of_each = []
    for planned, _ in run.repeats:
        sketches = planned.workload.sketches
        if sketches is None:
            return None
        tokens = sketches.prompt_tokens + sketches.output_tokens - sketches.shared_tokens
        of_each.append(int(tokens.sum()))
    return max(of_each) if run.was_emptied else sum(of_each)


def _broken_off(run: Measured) -> list[RecordTable] | None:
    """The stretches whose end is known, where there are others than the repeats themselves."""
    if all(len(stretches) < 2 for stretches in run.stretches):
        return None
    every = [stretch for stretches in run.stretches for stretch in stretches]
    return [stretch.table for stretch in every if not stretch.was_killed]


def _known(run: Measured) -> Known:
    return Known(
        tokens=run.asker.knows_tokens(run.planned),
        pages=run.endpoint.expected_cached_tokens(0, 1) is not None,
        is_chat=run.asker.is_chat,
        was_emptied=run.was_emptied,
    )


def _fidelity(run: Measured, result: PointResult) -> Fidelity | None:
    """Of a replay. Its prompts are made once more: nobody kept them."""
    sent = run.planned.workload
    if sent.recorded is None:
        return None
    wanted = outline(run.config).workload
    if wanted.recorded is None or wanted.sketches is None or sent.sketches is None:
        return None
    return fidelity_of(
        wanted.recorded,
        wanted.sketches,
        (prompt.token_ids for prompt in run.asker.prompts(sent.sketches, run.salt)),
        result.table,
        timed=run.config.load.fixed_schedule is True,
        stretches=[[stretch.table for stretch in stretches] for stretches in run.stretches],
        num_template_tokens=run.asker.wording.num_head_tokens,
        in_words=not run.asker.wording.is_exact,
    )


def _notes(run: Measured, stretches: RecordTable, bounded: str | None) -> list[str]:
    """What does not follow from figures."""
    simulated = run.endpoint.simulated
    notes = [*run.endpoint.warnings, *([simulated] if simulated else []), *run.notes]
    if run.interrupted:
        notes.append("interrupted: the figures are of the requests that had finished")
    if run.gone:
        notes.append(f"not all was sent: {run.gone}")
    resumed = bool((stretches.ok & (stretches.segment > 0)).any())
    if resumed and has_sessions(run.planned.workload.sketches) and not run.was_emptied:
        notes.append(FINDS_ITSELF)
    notes += _workload_notes(run)
    return notes + [note for note in (bounded, run.asker.made_for_note(run.planned)) if note is not None]


def _workload_notes(run: Measured) -> list[str]:
    workload, asked = run.planned.workload, run.config.dataset.num_prompts
    notes = list(workload.notes)
    if workload.made_up is not None:
        notes.append(f"prompts made of {run.asker.wording.vocabulary.describe()}")
    if asked is None or run.planned.num_requests >= asked:
        return notes
    if workload.recorded is not None:
        return [f"the trace has {run.planned.num_requests:,} requests for --num-prompts {asked:,}", *notes]
    if workload.made_up is not None and not run.config.load.ends_by_itself:
        return notes  # whoever made it up says why there are no more
    why = run.config.load.arrivals() or "the data set"
    return [f"{run.planned.num_requests:,} of --num-prompts {asked:,} arrive: {why} end before", *notes]


def _result_notes(run: Measured, result: PointResult) -> list[str]:
    table, workload = result.table, run.planned.workload
    about = workload.made_up is not None and not run.asker.wording.is_exact
    notes = delivery_notes(table, ignore_eos=run.endpoint.ignore_eos)
    counted_tokens = int(table.num_prompt_tokens[told := table.ok & (table.num_prompt_tokens >= 0)].sum())
    if about and told.any():
        asked = int(table.planned_prompt_tokens[told].sum())
        near = abs(counted_tokens - asked) <= ABOUT * asked
        notes.append(
            "prompt lengths are about as asked; the figures are the server's count"
            if near
            else "prompts in words are not as long as asked, by the server's count: give --tokenizer"
        )
    unsent = int((table.outcome == CODE[Outcome.UNSENT]).sum())
    live = workload.sketches is not None and workload.sketches.continues is not None
    if live and (broken := num_behind_failures(table)):
        unsent -= broken
        notes.append(f"{counted(broken, 'later turn')} not sent, for a turn of its session had failed")
    if unsent and not result.interrupted:
        notes.append(f"{unsent} requests were not sent: --duration was over")
    if result.ledger is not None:
        notes += result.ledger.notes
    if not result.health.num_workers:  # a client that left no word of itself
        return notes
    return notes + calibration_notes(result.health, result.metrics.output_throughput)


def cold_note(found: ColdStart, *, salted: bool) -> str:
    """How cold the cache was before a repeat."""
    if found.coldness is Coldness.SALTED and not salted:
        return f"cold start impossible: {found.detail}; the prompts of a file may be cached already"
    return f"cold start {found.coldness.value}: {found.detail}"


def point_settings(
    endpoint: Endpoint, config: ServeConfig, planned: Outline, swept: Mapping[str, Any]
) -> PointSettings:
    """What the point's reports say of it."""
    return PointSettings(
        backend=endpoint.backend,
        model=endpoint.model,
        tokenizer=config.target.tokenizer,
        dataset=config.dataset.dataset_name,
        label=config.report.label,
        num_prompts=planned.num_requests,
        open_loop=config.load.open_loop,
        request_rate=config.load.request_rate,
        burstiness=config.load.burstiness,
        arrivals=config.arrivals(),
        facts=planned.workload.facts,
        ramp=config.load.ramp(),
        max_concurrency=config.load.max_concurrency,
        objectives=config.report.objectives(),
        selected=config.report.metrics(),
        percentiles=config.report.percentiles(),
        metadata=config.report.metadata_pairs(),
        swept=swept,
        date=wall_time_label(),
    )
