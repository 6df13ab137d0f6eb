"""Single cells of a table as text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np


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
