"""The block hash: a chain over full pages, salted by namespace. The one definition for cache, storage,
router, traces and simulator.

A page's digest is sha256(parent digest ‖ token ids as little-endian uint32). The chain starts from nothing,
so without a namespace it equals SGLang's page hash (fact taken from its wheel, 0.5.23), and our router can
recompute SGLang's hashes from tokens. A namespace starts the chain from sha256 of its parts, length-prefixed,
so no two namespaces share a digest. Cryptographic on purpose: storage keys are shared between tenants, and a
collision that can be constructed would be a leak.

Invariant: equal digests ⇔ equal namespace and equal tokens up to and including the page.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

TokenIds = npt.NDArray[np.int32]
"""Token ids, shape (n,), int32. The one in-memory form of tokens in core, cache and scheduler."""


class Namespace(NamedTuple):
    """Requests share pages only within one namespace. Both parts None: the public namespace."""

    extra_key: str | None = None
    cache_salt: str | None = None


PUBLIC = Namespace()


def as_token_ids(tokens: Iterable[int] | TokenIds) -> TokenIds:
    """Token ids as a contiguous int32 array; an int32 array is returned as it is."""
    if isinstance(tokens, np.ndarray):
        return np.ascontiguousarray(tokens, dtype=np.int32)
    return np.fromiter(tokens, dtype=np.int32)


def namespace_seed(namespace: Namespace) -> bytes:
    """Digest the chain of `namespace` starts from; empty for the public one."""
    if namespace == PUBLIC:
        return b""
    seed = hashlib.sha256(b"prefixlab-namespace-v1")
    for part in namespace:
        # Length first, and None apart from "": no two namespaces spell the same bytes.
        data = b"" if part is None else part.encode()
        seed.update(b"-" if part is None else len(data).to_bytes(8, "little"))
        seed.update(data)
    return seed.digest()


def block_digests(tokens: TokenIds, page_size: int, parent: bytes) -> list[bytes]:
    """Digests (32 bytes each) of the full pages of `tokens`, continuing the chain from `parent`.

    Args:
        tokens: shape (n,), int32; a trailing partial page is ignored.
        page_size: tokens per page.
        parent: digest of the page before, or `namespace_seed(...)` at the start.
    """
    data = tokens.astype("<u4", copy=False).tobytes()
    width = 4 * page_size
    digests = []
    for start in range(0, len(data) // width * width, width):
        parent = hashlib.sha256(parent + data[start : start + width]).digest()
        digests.append(parent)
    return digests


def event_hash(digest: bytes) -> int:
    """A digest as KV events carry it: its first eight bytes as a signed big-endian integer."""
    return int.from_bytes(digest[:8], "big", signed=True)
