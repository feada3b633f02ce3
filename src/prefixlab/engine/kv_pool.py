"""The KV pages themselves: one pair of tensors per layer, addressed by slot, and how many of them fit.

Owns the bytes of keys and values, and nothing about who may use which page: that is `cache/`'s. A *slot* is
one token's place: page · page_size + offset.

Invariant: a page's content changes only by `write` to its slots or `copy_in`.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from prefixlab.core.batch import IntArray
from prefixlab.core.errors import EngineError
from prefixlab.engine.model_config import ModelConfig

DEFAULT_MEMORY_SHARE = 0.1
DEFAULT_MEMORY_CAP_BYTES = 8 << 30

PageBytes = npt.NDArray[np.uint8]
"""Pages in host memory, shape (pages, page_bytes): per page, layer after layer, its keys then its values,
each (page_size, kv_heads, head_dim) in the pool's dtype."""


class KVPool:
    """Keys and values of `num_pages` pages in every layer.

    Attributes:
        keys, values: per layer, shape (num_pages * page_size, kv_heads * head_dim): a row is a slot.

    Raises:
        EngineError: not enough free memory; the message says how many bytes were asked and are free.
    """

    def __init__(self, config: ModelConfig, num_pages: int, page_size: int, dtype: torch.dtype) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self.dtype = dtype
        self.page_bytes = page_bytes(config, page_size, dtype)
        asked_bytes, free_bytes = num_pages * self.page_bytes, free_memory_bytes()
        if asked_bytes > free_bytes:
            raise EngineError(
                f"{num_pages:,} pages of KV need {asked_bytes:,} bytes, and {free_bytes:,} bytes of memory "
                f"are free: {free_bytes // self.page_bytes:,} pages fit (--num-pages, --kv-memory-bytes)"
            )
        shape = (num_pages * page_size, config.kv_size)
        self.keys = [_zeros(shape, dtype) for _ in range(config.num_layers)]
        self.values = [_zeros(shape, dtype) for _ in range(config.num_layers)]

    def write(self, layer: int, slots: Tensor, key: Tensor, value: Tensor) -> None:
        """Store keys and values, shape (n, kv_heads, head_dim) each, at `slots`, shape (n,), int64."""
        self.keys[layer].index_copy_(0, slots, key.flatten(1))
        self.values[layer].index_copy_(0, slots, value.flatten(1))

    def read(self, layer: int, slots: Tensor, keys_out: Tensor, values_out: Tensor) -> None:
        """Gather keys and values at `slots` into buffers of shape (n, kv_heads * head_dim)."""
        torch.index_select(self.keys[layer], 0, slots, out=keys_out)
        torch.index_select(self.values[layer], 0, slots, out=values_out)

    # Whole pages, to and from host memory: what a tier below the device needs. --------------------------

    def copy_out(self, pages: IntArray) -> PageBytes:
        """A copy of `pages`, shape (n,), as host bytes, shape (n, page_bytes)."""
        index = torch.from_numpy(pages.astype(np.int64))
        parts = [
            tensor.view(self.num_pages, -1).index_select(0, index).view(torch.uint8)
            for pair in zip(self.keys, self.values, strict=True)
            for tensor in pair
        ]
        return torch.cat(parts, dim=1).numpy()

    def copy_in(self, pages: IntArray, data: PageBytes) -> None:
        """Overwrite `pages`, shape (n,), with what `copy_out` made; EngineError if the shape differs."""
        if data.shape != (len(pages), self.page_bytes):
            raise EngineError(
                f"{len(pages)} pages of {self.page_bytes} bytes cannot be filled from shape {data.shape}"
            )
        index = torch.from_numpy(pages.astype(np.int64))
        tensors = [tensor for pair in zip(self.keys, self.values, strict=True) for tensor in pair]
        for part, tensor in zip(torch.from_numpy(data).chunk(len(tensors), dim=1), tensors, strict=True):
            tensor.view(self.num_pages, -1).index_copy_(0, index, part.contiguous().view(self.dtype))


def page_bytes(config: ModelConfig, page_size: int, dtype: torch.dtype) -> int:
    """Bytes of one page over all layers, keys and values."""
    return 2 * config.num_layers * page_size * config.kv_size * dtype.itemsize


def choose_num_pages(
    bytes_per_page: int,
    *,
    num_pages: int | None,
    kv_memory_bytes: int | None,
    useful_pages: int,
    free_bytes: int,
) -> int:
    """How many pages to make: as many as named; else as fit the budget; else as a tenth of free memory (8 GiB
    at most) holds, but no more than `useful_pages`, which every row at full length would fill.

    Raises:
        EngineError: the budget holds no page.
    """
    if num_pages is not None:
        return num_pages
    budget = kv_memory_bytes
    if budget is None:
        budget = min(int(free_bytes * DEFAULT_MEMORY_SHARE), DEFAULT_MEMORY_CAP_BYTES)
    pages = budget // bytes_per_page
    if pages < 1:
        raise EngineError(
            f"one page of KV needs {bytes_per_page:,} bytes and the budget is {budget:,} "
            f"({free_bytes:,} bytes of memory are free): raise --kv-memory-bytes or lower --page-size"
        )
    return min(pages, useful_pages) if kv_memory_bytes is None else pages


def free_memory_bytes() -> int:
    """Bytes this process can still use: what the machine has free, and what its cgroup (v2) leaves it."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    else:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()) != "max":
        used = int(limit.with_name("memory.current").read_text())
        # File cache counts as used, but gives way.
        stat = dict(line.split() for line in limit.with_name("memory.stat").read_text().splitlines())
        free = min(free, max(0, int(text) - used + int(stat["inactive_file"])))
    return free


def _zeros(shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Zeros that cost memory only once touched: torch.zeros writes them, numpy asks the system for them."""
    num_bytes = shape[0] * shape[1] * dtype.itemsize
    try:
        raw = np.zeros(num_bytes, dtype=np.uint8)
    except MemoryError:
        raise EngineError(f"the system refused {num_bytes:,} bytes for KV pages (--num-pages)") from None
    return torch.from_numpy(raw).view(dtype).view(shape)
