"""Random numbers without state: one uniform number per (seed, output index).

Nothing is advanced and nothing remembered, so batching, retraction and resumption cannot change a request's
numbers. The hash is SplitMix64's finaliser (Steele, Lea, Flood, OOPSLA 2014) over a Weyl sequence.

Invariant: `uniforms` depends on nothing but its arguments.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from prefixlab.core.request import Request

_WEYL = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def uniforms(seeds: npt.NDArray[np.uint64], indexes: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """Numbers in [0, 1) with 53 random bits, shape (n,), for seeds and output indexes of shape (n,)."""
    # The seed is mixed before the index is added: seeds 1, 2, 3 … must not give shifted copies of one stream.
    bits = _mix(_mix(seeds + _WEYL) + indexes * _WEYL)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def request_seed(request: Request, engine_seed: int) -> int:
    """The request's own seed, or one made from the engine's seed and the request's id; unsigned, 64 bits."""
    if request.sampling.seed is not None:
        return request.sampling.seed % 2**64
    digest = hashlib.blake2b(f"{engine_seed}/{request.request_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    mixed: npt.NDArray[np.uint64] = x ^ (x >> np.uint64(31))
    return mixed
