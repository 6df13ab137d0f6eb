"""Single cells of a table: as text, or as the JSON object that a text is."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

MISSING = frozenset({"", "NA", "N/A", "n/a", "NaN", "nan", "null", "NULL"})
"""Attribute values that say that there is none, as tables commonly do."""


class BadCellError(ValueError):
    """A cell that makes its row unusable.

    Args:
        column: The column at fault, None where the row has none.
        reason: What is wrong, in words; the kind of fault, a colon, details.
    """

    def __init__(self, column: str | None, reason: str) -> None:
        super().__init__(reason)
        self.column, self.reason = column or "", reason


def scalar(cell: Any, column: str) -> str:
    """An id, attribute, group or split as text: 2011.0 is "2011", a missing value is "".

    Raises:
        BadCellError: It is a list, an object or bytes.
    """
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, float | np.floating) and float(cell).is_integer():
        return str(int(cell))
    if isinstance(cell, list | tuple | set | Mapping | bytes | np.ndarray):
        raise BadCellError(column, f"wrong type: {type(cell).__name__}, not a single value")
    return str(cell).strip()


def json_object(cell: Any, column: str) -> Mapping[str, Any]:
    """The keys and values of a JSON object, written or already parsed; of an empty cell, ``null`` or ``NA`` none.

    Raises:
        BadCellError: It is no JSON, or another kind of JSON.
    """
    if isinstance(cell, Mapping):
        return cell
    if (text := scalar(cell, column)) in MISSING:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadCellError(column, f"malformed JSON: {error}") from None
    if not isinstance(found, dict):
        raise BadCellError(column, f"wrong type: JSON of a {type(found).__name__}, not an object")
    return found
