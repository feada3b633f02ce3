"""In which order arms take their turns. Pure.

Owns that order. A block of 2 n rounds is a Latin square and its mirror image: every arm stands at every place
twice (ABBA, then BAAB, of two), and the mean time of all arms' turns is the same, so a steady drift of the
machine cancels. Which arm is which in a block is drawn from the seed.

Invariant: the order of a round depends on (round, number of arms, seed) alone.
"""

from __future__ import annotations

import numpy as np


def order(round_number: int, num_arms: int, seed: int) -> tuple[int, ...]:
    """Arms by number, in the order of their turns in this round."""
    block, row = divmod(round_number, 2 * num_arms)
    mirrored, shift = divmod(row, num_arms)
    names = np.random.default_rng([seed, block]).permutation(num_arms).tolist()
    turns = [names[(shift + place) % num_arms] for place in range(num_arms)]
    return tuple(turns[::-1] if mirrored else turns)


def is_balanced(num_rounds: int, num_arms: int) -> bool:
    """Whether whole blocks were measured."""
    return num_rounds % (2 * num_arms) == 0
