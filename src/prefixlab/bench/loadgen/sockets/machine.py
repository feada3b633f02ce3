"""What the loop asks of the operating system beyond Python's library: a precise timer, a leash, open files.

Owns the calls into libc. Everything here may be missing on a machine: callers ask, and do without.

Invariant: nothing is changed for other processes, and limits are only raised.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import sys

from prefixlab.core.errors import ConfigError

_CLOCK_MONOTONIC = 1
_TFD_TIMER_ABSTIME = 1
_PR_SET_PDEATHSIG = 1
_PR_SET_TIMERSLACK = 29
_SIGKILL = 9
SPARE_FILES = 64
"""Open files of a worker other than its streams: capture, plan, counters, standard streams, libraries."""


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class TimerFd:
    """A Linux timer that is a file: readable from the deadline on, until armed again. Precise to
    microseconds, where waiting with a time-out is precise to a millisecond.

    Raises:
        OSError: this machine has none.
    """

    def __init__(self) -> None:
        libc = _libc()
        if libc is None or not hasattr(libc, "timerfd_create"):
            raise OSError("no timerfd here")
        self.fd: int = libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed")
        self._set = libc.timerfd_settime
        self._spec = _TimerSpec()
        self._spec_ref = ctypes.byref(self._spec)

    def arm(self, deadline_ns: int) -> None:
        """Become readable at this time of the monotonic clock; at once if it has passed."""
        value = self._spec.value
        value.seconds, value.nanoseconds = divmod(deadline_ns, 1_000_000_000)
        if self._set(self.fd, _TFD_TIMER_ABSTIME, self._spec_ref, None) != 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime failed")

    def close(self) -> None:
        os.close(self.fd)


def die_with_parent() -> None:
    """Be killed when the thread that started this process ends, however it ends; where there is a way."""
    _prctl(_PR_SET_PDEATHSIG, _SIGKILL)


def wake_on_time() -> None:
    """Let the kernel not put off this thread's wake-ups to save power."""
    _prctl(_PR_SET_TIMERSLACK, 1)


def allow_open_files(num_streams: int) -> None:
    """Raise this process's limit of open files as far as it may, and see that it is enough.

    Raises:
        ConfigError: it is not; names the limit and the need.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        # Some systems claim "unlimited" and still refuse it: then the soft limit is what there is.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = num_streams + SPARE_FILES
    if limit != resource.RLIM_INFINITY and limit < need:
        raise ConfigError(
            f"{num_streams:,} streams at once need {need:,} open files in a client process, and {limit:,} "
            "are allowed (ulimit -Hn): raise the limit, lower --max-concurrency, or use more workers"
        )


def _prctl(option: int, value: int) -> None:
    libc = _libc()
    if libc is not None and hasattr(libc, "prctl"):
        libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0)


def _libc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        return ctypes.CDLL(None, use_errno=True)
    except OSError:
        return None
