"""From what lines say to a trace: the checks all formats have in common.

Owns the growing columns, what makes a line nonsense, the inference of block sizes, and the order of time.

Invariant: a trace comes out whole or not at all; the message names the first line at fault.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from prefixlab.bench.traces.formats.format import Asked
from prefixlab.bench.traces.formats.source import Source
from prefixlab.bench.traces.trace import Trace
from prefixlab.bench.workloads.sketch import IntArray
from prefixlab.core.errors import ConfigError

BoolArray = npt.NDArray[np.bool_]

MAX_BLOCK_BITS = 24
POWERS = np.int64(1) << np.arange(MAX_BLOCK_BITS + 1)
NEARLY_ALL = 0.9
"""Of the lines: where more, or all but one, agree on a block size, the others are taken to be wrong."""
MAX_TOKENS = 1 << 40
"""Of one request; more is nonsense, and sums of it might not fit."""


@dataclass
class Columns:
    """What was read so far, one entry per request (ids apart).

    Attributes:
        lines: number of the line each request is from.
        times_s: since whenever; NaN where the line says none.
        session_ids, turns, think_s: empty where the format knows no sessions.
    """

    lines: array[int] = field(default_factory=lambda: array("q"))
    times_s: array[float] = field(default_factory=lambda: array("d"))
    prompt_tokens: array[int] = field(default_factory=lambda: array("q"))
    output_tokens: array[int] = field(default_factory=lambda: array("q"))
    id_counts: array[int] = field(default_factory=lambda: array("q"))
    hash_ids: array[int] = field(default_factory=lambda: array("q"))
    session_ids: list[str] = field(default_factory=list)
    turns: array[int] = field(default_factory=lambda: array("q"))
    think_s: array[float] = field(default_factory=lambda: array("d"))

    def __len__(self) -> int:
        return len(self.lines)

    def add(
        self, source: Source, number: int, time_s: float, prompt: int, output: int, ids: Sequence[int]
    ) -> None:
        try:
            self.prompt_tokens.append(prompt)
            self.output_tokens.append(output)
            self.hash_ids.extend(ids)
        except OverflowError:
            raise ConfigError(
                f"{source.at(number)}: lengths and hash ids must be below 2^63, not "
                f"{max(prompt, output, *ids)}"
            ) from None
        self.lines.append(number)
        self.times_s.append(time_s)
        self.id_counts.append(len(ids))

    def add_turn(self, session_id: str, turn: int, think_s: float) -> None:
        self.session_ids.append(session_id)
        self.turns.append(turn)
        self.think_s.append(think_s)

    def trace(
        self, source: Source, asked: Asked, *, block_size: int | None = None, notes: Sequence[str] = ()
    ) -> Trace:
        """All of it, checked and in the order of time.

        Args:
            block_size: what the format says; --block-size goes before it.

        Raises:
            ConfigError: there is nothing, or a line is wrong.
        """
        if not len(self):
            raise ConfigError(f"{source.path} holds no request")
        lines, counts = _ints(self.lines), _ints(self.id_counts)
        prompt, output, ids = _ints(self.prompt_tokens), _ints(self.output_tokens), _ints(self.hash_ids)
        starts = np.concatenate(([0], np.cumsum(counts)))
        check_lengths(source, lines, prompt, output)
        if (ids < 0).any():
            at = int(np.flatnonzero(ids < 0)[0])
            line = int(lines[np.searchsorted(starts, at, side="right") - 1])
            raise ConfigError(f"{source.at(line)}: hash ids must not be negative, not {ids[at]}")
        size = 1
        if len(ids):
            size = asked.block_size or block_size or infer_block_size(source, lines, prompt, counts)
            check_block_counts(source, lines, prompt, counts, size)
        elif asked.block_size:
            notes = (*notes, f"--block-size {asked.block_size} changes nothing: there are no hash ids")
        times_s = np.asarray(self.times_s, np.float64)
        has_times = not np.isnan(times_s).any()
        trace = Trace(
            name=source.name,
            block_size=size,
            offsets_s=times_s - times_s.min() if has_times else np.zeros(len(self)),
            prompt_tokens=prompt,
            output_tokens=output,
            starts=starts,
            hash_ids=ids,
            session_ids=self.session_ids or None,
            turns=_ints(self.turns) if self.turns else None,
            think_s=np.asarray(self.think_s, np.float64) if self.turns else None,
            has_times=has_times,
            notes=(*notes, *notes_of_unchained(starts, ids)),
        )
        order = np.argsort(trace.offsets_s, kind="stable")
        is_sorted = bool((np.diff(order) > 0).all())
        if asked.num_requests:
            order = order[: asked.num_requests]
        return trace if is_sorted and len(order) == len(trace) else trace.take(order)


def check_lengths(source: Source, lines: IntArray, prompt: IntArray, output: IntArray) -> None:
    wrong = (prompt < 1) | (output < 1) | (prompt > MAX_TOKENS) | (output > MAX_TOKENS)
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0])
        bound = f"at most {MAX_TOKENS:,}" if min(prompt[at], output[at]) >= 1 else "at least 1"
        raise ConfigError(
            f"{source.at(int(lines[at]))}: lengths must be {bound}, not {prompt[at]} and {output[at]}"
        )


def check_block_counts(
    source: Source, lines: IntArray, prompt: IntArray, counts: IntArray, block_size: int
) -> None:
    """One id per full block, and where a part is left perhaps one more."""
    full = prompt // block_size
    wrong = (counts < full) | (counts > -(-prompt // block_size))
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0])
        part = " and a part" if prompt[at] % block_size else ""
        raise ConfigError(
            f"{source.at(int(lines[at]))}: {prompt[at]} tokens are {full[at]} full blocks of "
            f"{block_size}{part}, but {counts[at]} hash ids are given"
        )


def notes_of_unchained(starts: IntArray, hash_ids: IntArray) -> list[str]:
    """That ids stand behind different beginnings, which those of a prefix cache do not."""
    if not len(hash_ids):
        return []
    parents = np.concatenate(([-1], hash_ids[:-1]))
    parents[starts[:-1][np.diff(starts) > 0]] = -1
    distinct, places = np.unique(hash_ids, return_inverse=True)
    one_parent = np.full(len(distinct), -1)
    one_parent[places] = parents
    has_several = np.zeros(len(distinct), np.bool_)
    has_several[places[one_parent[places] != parents]] = True
    if not has_several.any():
        return []
    return [
        f"{has_several.sum():,} of {len(distinct):,} hash ids stand behind different beginnings: "
        "counted by id they are one block each, while prompts made of them share a block only where all "
        "before it is equal"
    ]


def time_goes_back(source: Source, number: int, time: float | str, before: float | str) -> ConfigError:
    """Times as the file has them, or in seconds."""
    times = (shown if isinstance(shown, str) else f"{shown:.9g} s" for shown in (before, time))
    return ConfigError(
        f"{source.at(number)}: time goes back, from {' to '.join(times)}; lines that are right and merely "
        "out of order are put in order by --sort"
    )


def infer_block_size(source: Source, lines: IntArray, prompt_tokens: IntArray, id_counts: IntArray) -> int:
    """The block size that explains every request's number of ids; ConfigError where there is not one.

    Where all lines but a few agree on a size, the first that does not is wrong, and named. Powers of two go
    first: caches are cut into those, so a line that fits none of them is far likelier than another size.
    """
    if size := block_size_told(prompt_tokens, id_counts):
        return size
    lowest, highest = _sizes_that_fit(prompt_tokens, id_counts)
    smallest, largest = int(lowest.max()), int(highest.min())
    fits = None
    if not _powers_within(smallest, largest):
        fits = _all_but_a_few(lowest, highest, POWERS)
    if fits is None and smallest > largest:
        fits = _all_but_a_few(lowest, highest, np.unique(lowest[lowest <= highest]))
    if fits is None:
        fitting = f", but all from {smallest:,} to {largest:,}" if smallest <= largest else ""
        raise ConfigError(
            f"{source.path}: lengths and numbers of hash ids fit no one block size{fitting}; "
            "give --block-size"
        )
    at = int(np.flatnonzero(~fits)[0])
    told = block_size_told(prompt_tokens[fits], id_counts[fits])
    others = f"{told}" if told else f"{lowest[fits].max():,} to {highest[fits].min():,} tokens"
    raise ConfigError(
        f"{source.at(int(lines[at]))}: {prompt_tokens[at]} tokens have {id_counts[at]} hash ids, which fits "
        f"no blocks of {others}, as {fits.sum():,} of {len(fits):,} lines do; --block-size overrules them"
    )


def block_size_told(prompt_tokens: IntArray, id_counts: IntArray) -> int | None:
    """The one size, or the one power of two, that fits all requests: full blocks only, or a last partial one
    too. None where there is none or more than one; or where a power of two fits all but a few, which are then
    likelier to be wrong than the size is to be no power of two."""
    least, most = _sizes_that_fit(prompt_tokens, id_counts)
    lowest, highest = int(least.max()), int(most.min())
    powers = _powers_within(lowest, highest)
    if powers:
        return powers[0] if len(powers) == 1 else None
    if lowest != highest or _are_few(len(least) - int(_num_fits(least, most, POWERS).max()), len(least)):
        return None
    return lowest


def _powers_within(lowest: int, highest: int) -> list[int]:
    return [int(size) for size in POWERS if lowest <= size <= highest]


def _are_few(num_wrong: int, num_lines: int) -> bool:
    return num_wrong <= 1 or num_lines - num_wrong > NEARLY_ALL * num_lines


def _sizes_that_fit(prompt_tokens: IntArray, id_counts: IntArray) -> tuple[IntArray, IntArray]:
    """Of each request the smallest and the largest block size; none fits where that is smaller."""
    highest = (prompt_tokens - 1) // np.maximum(id_counts - 1, 1)
    bounded = np.where(id_counts > 1, np.minimum(highest, 1 << MAX_BLOCK_BITS), 1 << MAX_BLOCK_BITS)
    return prompt_tokens // (id_counts + 1) + 1, bounded


def _num_fits(lowest: IntArray, highest: IntArray, sizes: IntArray) -> IntArray:
    """How many requests fit each size."""
    possible = lowest <= highest
    begins, ends = np.sort(lowest[possible]), np.sort(highest[possible])
    counts: IntArray = np.searchsorted(begins, sizes, side="right") - np.searchsorted(
        ends, sizes, side="left"
    )
    return counts


def _all_but_a_few(lowest: IntArray, highest: IntArray, sizes: IntArray) -> BoolArray | None:
    """The requests that fit the one of `sizes` which most of them fit. None where those are not all but a
    few, or where another size fits as many others."""
    if not len(sizes):
        return None
    num_fits = _num_fits(lowest, highest, sizes)
    best = sizes[num_fits == num_fits.max()]
    fits: BoolArray = (lowest <= best[0]) & (best[0] <= highest)
    num_wrong = len(fits) - int(fits.sum())
    if 2 * num_wrong >= len(fits) or not _are_few(num_wrong, len(fits)):
        return None
    return fits if best[-1] <= highest[fits].min() else None


def _ints(values: array[int]) -> IntArray:
    return np.frombuffer(values, np.int64) if values else np.zeros(0, np.int64)
