"""The machine a benchmark runs on, in words: every number is printed with it. Owns no measurement."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def machine_name() -> str:
    """`AMD EPYC 7B13, 2 cores`: processor and the cores this process may use."""
    return f"{_processor()}, {num_cores()} core{'s' if num_cores() != 1 else ''}"


def num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return " ".join(value.split())
    return platform.processor() or platform.machine() or "unknown processor"
