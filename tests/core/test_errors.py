from __future__ import annotations

import inspect

from prefixlab.core import errors


def test_the_drawn_tree_is_the_real_one() -> None:
    drawn = errors.__doc__ or ""
    for name, kind in inspect.getmembers(errors, inspect.isclass):
        assert issubclass(kind, errors.PrefixlabError)
        assert name in drawn


def test_a_request_error_remembers_the_field_at_fault() -> None:
    assert errors.InvalidRequestError("too hot", "temperature").param == "temperature"
    assert errors.ContextLengthError("too long").param is None
