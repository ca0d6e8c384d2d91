"""Machines as fleet.json and status.json have them, read back."""

from __future__ import annotations

from typing import Any

from clamproxy.fleet.machine import Database, Machine
from clamproxy.fleet.observer import Failure

type Json = dict[str, Any]


def machine_of(values: Json) -> Machine:
    """The inverse of `Machine.to_json`.

    Raises:
        TypeError, AttributeError: it has not that form.
    """
    fields = dict(values)
    databases, error = fields.pop("databases"), fields.pop("last_error")
    return Machine(
        **fields,
        databases={name: Database(**known) for name, known in databases.items()},
        last_error=None if error is None else Failure(**error),
    )
