"""Values as JSON text."""

import json
from datetime import datetime


def as_json(value: object, *, indent: int | None = 2) -> str:
    """Return a value as JSON, with times as ISO 8601 text in UTC; on one line if `indent` is None."""
    return json.dumps(value, indent=indent, default=lambda v: v.isoformat() if isinstance(v, datetime) else str(v))
