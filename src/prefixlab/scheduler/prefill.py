"""Which prompts are computed in a step, and which piece of each: resuming, admitting, waiting for siblings.

Owns the one prompt that is computed in part, and the memory of a refusal. Puts requests into rows; taking
them out again, and everything about decode, is `scheduler.py`.

Invariant: at most one running request has a piece of its prompt left to plan, and it is planned first.
"""

from __future__ import annotations

from prefixlab.cache.manager import CacheManager, ComputingPrefixes
from prefixlab.core.request import Request, RequestStatus
from prefixlab.scheduler.admission import TokenBudget
from prefixlab.scheduler.assembly import Piece
from prefixlab.scheduler.config import SchedulerConfig
from prefixlab.scheduler.queue import WaitingQueue
from prefixlab.scheduler.room import Room
from prefixlab.scheduler.rows import RunningRows

MAX_DEFERRED_PER_STEP = 128
"""So many waiting requests may be passed over in a step, then it looks no further: each costs a lookup."""


class PrefillPlanner:
    """See the module. `notice_change` must be told of whatever but decode may let somebody in."""

    def __init__(
        self,
        config: SchedulerConfig,
        cache: CacheManager,
        waiting: WaitingQueue,
        rows: RunningRows,
        room: Room,
    ) -> None:
        self._config = config
        self._cache = cache
        self._waiting = waiting
        self._rows = rows
        self._room = room
        self.partial: Request | None = None
        """The running request whose prompt has pieces left to plan."""
        self._refused_spare_pages: int | None = None
        """Pages that were to spare when nobody could come in. While there are no more, and only decode has
        happened since, asking again would change nothing."""

    def plan(self) -> list[Piece]:
        """The pieces to compute now: of the prompt already begun, then of new ones while tokens, rows and
        pages last. The first that does not fit ends it, so that nobody is passed for being large."""
        pieces: list[Piece] = []
        budget = TokenBudget(self._config, self._cache.page_size)
        computing = self._computing()
        if self.partial is not None:
            piece = self._resume(self.partial, budget)
            if piece is None:
                return []  # decode goes on until pages come back
            pieces.append(piece)
        if self.is_worth_asking():
            pieces += self._admit_waiting(budget, computing)
            if not pieces:
                self._refused_spare_pages = self._room.num_spare_pages()
        return pieces

    def is_worth_asking(self) -> bool:
        """Whether somebody waits who might come in, as far as can be told without looking anybody up."""
        if not len(self._waiting):
            return False
        if self._refused_spare_pages is None or not len(self._rows):
            return True
        return not self._rows.is_full and self._room.num_spare_pages() > self._refused_spare_pages

    def notice_change(self) -> None:
        """Requests came, ended or gave way, or prompts were computed: who was refused may ask again."""
        self._refused_spare_pages = None

    def gave_up_row(self, request: Request) -> None:
        if self.partial is request:
            self.partial = None
        self.notice_change()

    def waits_for_sibling(self, request: Request) -> bool:
        """Whether `request` would be deferred if it came first in the next step."""
        return self._is_deferred(request, self._computing())

    def num_missing_pages(self, request: Request) -> int:
        """Pages that `request` lacks to come in now; see `Room`. Touches what it matches."""
        return self._room.num_missing_pages(request, self._cache.lookup(request, touch=True))

    def num_matched(self, request: Request) -> int:
        """Tokens of it that the cache holds; touches nothing."""
        return self._cache.lookup(request, touch=False).num_tokens

    def _resume(self, request: Request, budget: TokenBudget) -> Piece | None:
        """The next piece of a prompt already begun; None while there are no pages for it."""
        start = int(self._rows.num_computed[request.row])
        piece = Piece(request, start, budget.piece(request.num_tokens - start))
        if not self._cache.grow(request, piece.end):
            assert len(self._rows) > 1, "a request that runs alone has all pages"
            return None
        self._account_for(piece, budget)
        return piece

    def _admit_waiting(self, budget: TokenBudget, computing: ComputingPrefixes) -> list[Piece]:
        """First pieces of the waiting requests that come in now, in the policy's order."""
        pieces: list[Piece] = []
        num_deferred = 0
        order = () if self._rows.is_full else self._waiting.in_order(self.num_matched)
        for request in order:
            if self._rows.is_full or budget.is_spent or num_deferred == MAX_DEFERRED_PER_STEP:
                break
            if self._is_deferred(request, computing):
                num_deferred += 1
                continue
            piece = self._admit(request, budget)
            if piece is None:
                break
            pieces.append(piece)
            computing.add(request)
        for piece in pieces:
            self._waiting.remove(piece.request)
        return pieces

    def _admit(self, request: Request, budget: TokenBudget) -> Piece | None:
        """Give `request` a row, and pages for its first piece; None if it does not fit. (What it matched is
        touched all the same: the first in line keeps its prefix from eviction while it waits.)"""
        match = self._cache.lookup(request, touch=True)
        piece = Piece(request, match.num_tokens, budget.piece(request.num_tokens - match.num_tokens))
        if not piece.length or self._room.num_missing_pages(request, match) > 0:
            return None
        self._cache.admit(request, match, self._rows.next_free())
        has_pages = self._cache.grow(request, piece.end)
        assert has_pages, "admission counted pages that are not there"
        self._rows.take(request)
        request.status = RequestStatus.RUNNING
        self._account_for(piece, budget)
        return piece

    def _account_for(self, piece: Piece, budget: TokenBudget) -> None:
        budget.spend(piece.length, is_last_piece=piece.is_last)
        if not piece.is_last:
            self.partial = piece.request
        elif self.partial is piece.request:
            self.partial = None

    def _is_deferred(self, request: Request, computing: ComputingPrefixes) -> bool:
        """In-batch deferral: so much of `request` is being computed right now that it had better wait and
        find it in the cache. It waits only for pieces of this step and for a prompt begun before. Those come
        to an end, or their request does, and then nothing is being computed: it cannot wait for ever."""
        threshold = max(1, self._config.in_batch_deferral_threshold)
        if self._config.in_batch_deferral_threshold < 0:
            return False
        num_computing = self._cache.lookup_computing(request, computing)
        return num_computing >= threshold and num_computing - self.num_matched(request) >= threshold

    def _computing(self) -> ComputingPrefixes:
        """The prompt in progress, to which a plan adds those it admits."""
        computing = ComputingPrefixes(self._cache.page_size)
        if self.partial is not None:
            computing.add(self.partial)
        return computing
