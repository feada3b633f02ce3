from __future__ import annotations

import base64
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixlab.bench.report.html.packing import json_text, packed

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda of: st.lists(of) | st.dictionaries(st.text(), of),
)


@settings(deadline=None)
@given(VALUES)
def test_no_text_can_end_the_block_it_is_in(value: object) -> None:
    text = json_text(value)
    assert json.loads(text) == value
    assert text.isascii() and not set("<>&") & set(text)


def test_what_json_does_not_know_is_a_bug_not_a_broken_page() -> None:
    with pytest.raises(ValueError):
        json_text({"x": float("nan")})


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.uint32, np.float32])
def test_a_column_comes_back_as_it_was(kind: type) -> None:
    column = np.array([0, 1, 200], dtype=kind)
    found = packed(column)
    back = np.frombuffer(base64.b64decode(found["bytes"]), np.dtype(kind).newbyteorder("<"))
    assert back.tolist() == column.tolist()
    assert found["type"] == {"uint8": "u8", "uint16": "u16", "uint32": "u32", "float32": "f32"}[kind.__name__]


def test_a_column_of_a_kind_no_page_reads_is_refused() -> None:
    with pytest.raises(AssertionError, match="int64"):
        packed(np.arange(3))
