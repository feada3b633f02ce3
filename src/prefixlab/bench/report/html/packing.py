"""Data inside the page: JSON that no text in it can break out of, columns of numbers as base64.

Owns both forms; `assets/base.js` reads them. Invariant: the result holds none of `<`, `>`, `&`, and is ASCII.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import numpy.typing as npt

_TYPES = {"u1": "u8", "u2": "u16", "u4": "u32", "f4": "f32"}


def packed(column: npt.NDArray[Any]) -> dict[str, str]:
    """Of floats 32 bits are kept: the eye cannot tell. NaN is nothing."""
    if column.dtype.kind == "f":
        column = column.astype(np.float32)
    kind = _TYPES.get(f"{column.dtype.kind}{column.dtype.itemsize}")
    assert kind is not None, f"columns of {column.dtype} are not embedded"
    plain = np.ascontiguousarray(column).astype(column.dtype.newbyteorder("<"), copy=False)
    return {"type": kind, "bytes": base64.b64encode(plain.tobytes()).decode("ascii")}


def json_text(value: Any) -> str:
    """For a script element of type application/json: line separators, and all beyond ASCII, are escaped."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
