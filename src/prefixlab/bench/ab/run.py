"""The arms in turns: round after round, until there were enough.

Owns the order of things, the servers that are open meanwhile, and when it ends. An arm is a run of
`bench serve` in a folder of its own, whose repeats are the rounds; a turn is one of them.

Invariant: whether there are enough rounds depends on the records alone, so an A/B that was broken off goes on
as it would have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from prefixlab.bench.ab.arms import Arm, Role, as_asked, can_force, same_server, variant_of
from prefixlab.bench.ab.config import AbConfig
from prefixlab.bench.ab.judge import Answered, answer, half_width, questions
from prefixlab.bench.ab.schedule import is_balanced, order
from prefixlab.bench.compare.bootstrap import FEWEST_VALUES
from prefixlab.bench.metrics.point import ARM, PointResult
from prefixlab.bench.metrics.windows import duration_s
from prefixlab.bench.records.record import Outcome
from prefixlab.bench.records.run_dir import SEGMENTS, RunDir
from prefixlab.bench.records.table import CODE, RecordTable
from prefixlab.bench.runs import files
from prefixlab.bench.runs.checks import check_point
from prefixlab.bench.runs.serve import ServeRun, Watcher
from prefixlab.bench.runs.sweep import MakeTokenizer, Named, OpenEndpoint, SweepPoint, point_folder
from prefixlab.bench.runs.trial import try_out
from prefixlab.bench.targets.endpoint import Endpoint
from prefixlab.core.errors import ConfigError, TargetError

LOOK_AGAIN = 1.1
"""--until-ci is looked at again after a tenth more rounds, at the end of a block of the schedule: each look
costs, and is a chance to be lucky."""

FEWEST_STARTS = 5
"""Of servers, before --until-ci believes that it knows how much they differ."""


@dataclass
class Turns:
    """How far the arms have come.

    Attributes:
        orders: of the rounds, each the numbers of the arms in their order.
        rounds: of each arm a table for every round that all arms ended.
        results: of each arm, once it is over.
        why_ended: in words.
        gone: why a server could not be asked any more.
    """

    config: AbConfig
    arms: Sequence[Arm]
    notes: list[str]
    orders: list[tuple[int, ...]] = field(default_factory=list)
    rounds: list[list[RecordTable]] = field(default_factory=list)
    results: list[PointResult] = field(default_factory=list)
    why_ended: str = ""
    interrupted: bool = False
    gone: str | None = None

    @property
    def num_rounds(self) -> int:
        return len(self.rounds[0]) if self.rounds else 0

    @property
    def seed(self) -> int:
        return self.arms[0].config.dataset.seed

    @property
    def broken_off(self) -> bool:
        return self.interrupted or self.gone is not None

    def answers(self, num_figures: int | None = None) -> list[Answered]:
        """What is known so far; of the first figures only, where that is enough."""
        figures = self.config.figures[:num_figures]
        open_loop = any(arm.config.load.open_loop for arm in self.arms)
        return [
            answer(
                question,
                self.rounds,
                figures,
                open_loop=open_loop,
                seed=self.seed,
                per_start=self.config.restart_every,
            )
            for question in questions(self.arms)
        ]


@dataclass
class _Runner:
    """An arm under way."""

    arm: Arm
    endpoint: Endpoint
    run: ServeRun
    folder: RunDir | None
    finished: bool
    notes: list[str]
    steps: Iterator[int]
    num_turns: int = 0

    def take_turn(self) -> None:
        next(self.steps)
        self.num_turns += 1

    def over(self, *, broken_off: bool) -> PointResult:
        result = self.run.result(self.num_turns, broken_off=broken_off)
        if self.folder is None or self.finished:
            return result
        detailed = self.arm.config.report.save_detailed
        return files.finish(self.folder, self.endpoint, result, detailed=detailed, notes=self.notes)


def take_turns(
    config: AbConfig,
    arms: Sequence[Arm],
    open_endpoint: OpenEndpoint,
    make_tokenizer: MakeTokenizer,
    *,
    folder: Path | None,
    watcher: Watcher,
    notes: Sequence[str] = (),
    on_round: Callable[[Turns], None] | None = None,
) -> Turns:
    """Measure the arms, or go on where `folder` says they were left.

    Args:
        on_round: called after every round, those included that the folder holds.

    Raises:
        ConfigError: the requests cannot be made, do not fit a server, or an arm cannot show what it should.
        TargetError: a server cannot be asked, and no round was ended.
        KeyboardInterrupt: interrupted before a round was ended.
    """
    turns = Turns(config, arms, list(notes))
    up_to = _rounds_of_this_start(config, arms, folder)
    while not turns.results:
        _with_servers(turns, up_to, list(notes), open_endpoint, make_tokenizer, folder, watcher, on_round)
        up_to += config.restart_every or 0
    return turns


def _rounds_of_this_start(config: AbConfig, arms: Sequence[Arm], folder: Path | None) -> int:
    """After how many rounds the servers are to be started anew, or all is over."""
    if config.restart_every is None:
        return config.most_rounds
    if folder is None:
        raise ConfigError("--restart-every goes on from the run's folder: leave out --no-run-dir")
    if not all(arm.config.target.is_embedded for arm in arms):
        raise ConfigError("--restart-every is for embedded engines: other servers are not ours to start")
    done = len(list((folder / arms[0].name / SEGMENTS).glob("*.json")))
    return (done // config.restart_every + 1) * config.restart_every


def _with_servers(
    turns: Turns,
    up_to: int,
    notes: list[str],
    open_endpoint: OpenEndpoint,
    make_tokenizer: MakeTokenizer,
    folder: Path | None,
    watcher: Watcher,
    on_round: Callable[[Turns], None] | None,
) -> None:
    """From one start of the servers to the next. Rounds that the folder holds are only read."""
    arms = turns.arms
    with ExitStack() as resources:
        servers: dict[str, Endpoint] = {}
        for arm in arms:
            if (name := same_server(arm.config)) not in servers:
                try:
                    servers[name] = resources.enter_context(open_endpoint(arm.config))
                except (ConfigError, TargetError) as error:
                    raise type(error)(f"arm {arm.name}: {error}") from None
        of_each = [servers[same_server(arm.config)] for arm in arms]
        turns.notes = [*notes, *_notes(arms, of_each)]
        runners = _runners(arms, of_each, make_tokenizer, folder, watcher, resources)
        _until_enough(turns, runners, up_to, on_round)
        if turns.broken_off and not turns.num_rounds:
            if turns.gone is not None:
                raise TargetError(turns.gone)
            raise KeyboardInterrupt
        if turns.why_ended:
            turns.results = [runner.over(broken_off=turns.broken_off) for runner in runners]


def _runners(
    arms: Sequence[Arm],
    servers: Sequence[Endpoint],
    make_tokenizer: MakeTokenizer,
    folder: Path | None,
    watcher: Watcher,
    resources: ExitStack,
) -> list[_Runner]:
    """Everything is checked before anything is sent or written."""
    endpoints = [as_asked(arm, server) for arm, server in zip(arms, servers, strict=True)]
    tokenizers = []
    for arm, endpoint in zip(arms, endpoints, strict=True):
        tokenizers.append(make_tokenizer(arm.config, endpoint))
        check_point(endpoint, arm.config, tokenizers[-1])
    if folder is None or not any((folder / arm.name).exists() for arm in arms):
        for endpoint, config in {id(s): (s, a.config) for a, s in zip(arms, servers, strict=True)}.values():
            try_out(endpoint, config)
    on_server: Counter[str] = Counter()
    runners = []
    for arm, endpoint, tokenizer in zip(arms, endpoints, tokenizers, strict=True):
        point = SweepPoint(arm.name, {ARM: arm.name}, arm.config)
        kept = None if folder is None else resources.enter_context(point_folder(folder, point, endpoint))
        finished = kept is not None and kept.is_finished
        begun = kept is not None and not finished
        notes = files.begin(kept, endpoint, arm.config.dataset.seed) if kept is not None and begun else []
        run = ServeRun(
            endpoint,
            arm.config,
            tokenizer=tokenizer,
            folder=kept,
            cold=arm.config.load.flush_cache is not False,
            swept=dict(point.swept),
            watcher=Named(watcher, arm.name),
            variant=variant_of(arm, endpoint, on_server[endpoint.url]),
        )
        on_server[endpoint.url] += 1
        runners.append(_Runner(arm, endpoint, run, kept, finished, notes, run.steps()))
    return runners


def _until_enough(
    turns: Turns, runners: Sequence[_Runner], up_to: int, on_round: Callable[[Turns], None] | None
) -> None:
    """Or until `up_to` rounds are over: then nothing says why it ended."""
    turns.rounds, turns.orders = [[] for _ in runners], []
    enough = _Enough(turns)
    for number in range(min(up_to, turns.config.most_rounds)):
        turns.orders.append(order(number, len(runners), turns.seed))
        for place in turns.orders[-1]:
            _take_turn(turns, runners[place])
            if turns.broken_off:
                turns.orders.pop()
                turns.why_ended = "broken off"
                return
        for tables, runner in zip(turns.rounds, runners, strict=True):
            tables.append(runner.run.table(number))
        if on_round is not None:
            on_round(turns)
        if why := enough.why():
            turns.why_ended = why
            return
    if turns.num_rounds == turns.config.most_rounds:
        turns.why_ended = f"{turns.num_rounds} rounds are over"


def _take_turn(turns: Turns, runner: _Runner) -> None:
    try:
        runner.take_turn()
    except KeyboardInterrupt:
        turns.interrupted = True
    if runner.run.gone is not None:
        turns.gone = f"{runner.arm.name}: {runner.run.gone}"
    elif runner.run.interrupted:
        turns.interrupted = True


class _Enough:
    """Whether there are enough rounds, asked after each."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._spent_s = 0.0
        self._look_at = 0.0

    def why(self) -> str:
        """Empty while there are not."""
        turns, config = self._turns, self._turns.config
        self._spent_s += sum(duration_s(tables[-1]) for tables in turns.rounds)
        if config.duration is not None and self._spent_s >= config.duration:
            return f"--duration {config.duration:g} s is over"
        num_requests = sum(map(len, turns.rounds[0]))
        whole_blocks = is_balanced(turns.num_rounds, len(turns.arms))
        if config.until_ci is None or not whole_blocks or num_requests < FEWEST_VALUES:
            return ""
        every = config.restart_every
        if every is not None and (turns.num_rounds % every or turns.num_rounds < FEWEST_STARTS * every):
            return ""  # what starts differ by is not known yet
        if turns.num_rounds < self._look_at:
            return ""
        self._look_at = turns.num_rounds * LOOK_AGAIN
        widths = [half_width(answered.differences[0]) for answered in turns.answers(1)]
        known = [width for width in widths if width is not None]
        if len(known) < len(widths) or max(known) > config.half_width:
            return ""
        return f"every interval of {config.figures[0]} is within ±{config.half_width * 100:g}%"


def _notes(arms: Sequence[Arm], servers: Sequence[Endpoint]) -> list[str]:
    """How arms came to be what they are."""
    notes = []
    for arm, server in zip(arms, servers, strict=True):
        if arm.role is Role.MISS and not can_force(server):
            notes.append(
                f"{server.url} cannot be told to miss: prompts of the arm miss are as long as the others, "
                "and share nothing"
            )
    if len({server.url for server in servers}) > 1:
        notes.append(
            "arms of different servers: what differs between two processes by chance is in the differences, "
            "and only in the intervals where they were started several times (--restart-every)"
        )
    urls = [server.url for server in servers]
    if len(set(urls)) < len(urls):
        notes.append(
            "arms that ask one server have tokens of their own, in prompts that are otherwise the same: none "
            "finds what another brought"
        )
    return notes


def failed_in(turns: Turns) -> dict[str, int]:
    """Requests that failed, by arm, where any did."""
    counts = {
        arm.name: int((result.table.outcome == CODE[Outcome.FAILED]).sum())
        for arm, result in zip(turns.arms, turns.results, strict=True)
    }
    return {name: count for name, count in counts.items() if count}
