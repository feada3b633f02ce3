"""The one tree of errors. `server/errors.py` maps it to HTTP, `cli/main.py` to exit codes; nobody else does.

    PrefixlabError
    ├── ConfigError            an option, environment variable or config file is wrong: names it
    ├── RequestError           one request is wrong; the server goes on
    │   ├── InvalidRequestError    a field is malformed, unknown or not honoured
    │   ├── ContextLengthError     prompt plus output cannot fit the model or the cache
    │   ├── ModelNotFoundError     the model named is not the one served
    │   └── AuthenticationError    the key is missing or wrong
    ├── OverloadedError        the request was right, this server cannot take it now
    │   ├── QueueFullError         more than `max_queued_requests` are waiting
    │   ├── RequestTimeoutError    it waited or ran longer than allowed
    │   ├── NotIdleError           the operation needs an idle server
    │   └── ShuttingDownError      the server drains
    ├── CacheError             the cache was used against its contract (double unlock, foreign receipt, …)
    ├── EngineError            the model could not be loaded or run
    ├── TargetError            a server under measurement answered something it should not
    └── GateError              a run finished, and its verdict is a failure

Invariant: whatever a user can cause is one of these. `assert` is for our own bugs only.
"""

from __future__ import annotations


class PrefixlabError(Exception):
    """Root of everything prefixlab raises on purpose."""


class ConfigError(PrefixlabError):
    """An option, environment variable or file of settings cannot be used; the message names it."""


class RequestError(PrefixlabError):
    """One request is wrong.

    Args:
        message: what is wrong, in one sentence.
        param: the field at fault, as the client spelt it.
    """

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class InvalidRequestError(RequestError):
    """A field is malformed, unknown, or asks for something we do not honour."""


class ContextLengthError(RequestError):
    """Prompt plus requested output does not fit the model's context or the whole cache."""


class ModelNotFoundError(RequestError):
    """The request names a model this server does not serve."""


class AuthenticationError(RequestError):
    """The API key is missing or wrong."""


class OverloadedError(PrefixlabError):
    """The request is fine; this server cannot take it now."""


class QueueFullError(OverloadedError):
    """More than `max_queued_requests` requests are waiting."""


class RequestTimeoutError(OverloadedError):
    """The request waited in the queue, or ran, longer than the server allows."""


class NotIdleError(OverloadedError):
    """The operation (a cache flush) needs an idle server, and it did not become idle in time."""


class ShuttingDownError(OverloadedError):
    """The server is draining and takes no new work."""


class CacheError(PrefixlabError):
    """The cache was used against its contract: a double unlock, a foreign receipt, a double free."""


class EngineError(PrefixlabError):
    """The model could not be loaded, or a forward pass failed."""


class TargetError(PrefixlabError):
    """A server under measurement answered something it should not have; the message quotes it."""


class GateError(PrefixlabError):
    """A run finished and its verdict is a failure: the exit code says so."""
