"""The knobs: all settings of the sandbox that can change while it runs."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

from worker.sandbox.problems import problems

JSON = dict[str, Any]
Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Limit = tuple[Annotated[int, Field(ge=1)], Annotated[float, Field(gt=0, allow_inf_nan=False)]]


@dataclass
class Knobs:
    """Settings shared by the world, its API and its webhooks; a change takes effect at once.

    Times are seconds, shares are fractions from 0.0 to 1.0.
    """

    # The world. WorkOS does not document these details, so a mirror must work with every value.
    children_deleted: bool = True  # deleting an organization or a user also sends its children's deleted events
    sessions_outlive_users: bool = False  # the sessions of a deleted user stay active, and are listed
    role_deletion: Literal["events", "silently", "silently_same_version"] = "events"
    ties: bool = False  # changes of an object in the same millisecond may have the same times
    roles_in_events: bool = True  # memberships in events carry `roles` (optional there)
    keys_in_events: Literal["always", "changed"] = "always"  # when events carry shapes.HOST_KEYS (optional there)

    # The API.
    hold_back: Seconds = 2.0  # events younger than this are missing from ascending reads
    lateness: dict[str, Seconds] = field(default_factory=dict)  # event id to seconds until the events API shows it
    late_events: Literal["appended", "inserted"] = "appended"  # where it shows them: at the end, or at their time
    unknown_after: Literal["error", "beginning"] = "error"  # answer to an unknown or expired events cursor
    rate_limits: bool = False  # answer 429 above the documented limits
    address_limit: Limit = (6000, 60.0)  # requests, seconds: all calls of one address
    user_reads_limit: Limit = (1000, 10.0)  # GET /user_management/*, per environment
    user_writes_limit: Limit = (500, 10.0)  # other /user_management/* calls, per environment
    latency: Seconds = 0.0  # before every answer
    dated: bool = True  # answers have a valid `Date` header

    # The webhooks.
    paused: bool = False  # nothing is sent; events wait
    loss: Share = 0.0  # share of events never sent
    lose: Callable[[JSON], bool] | None = None  # an event for which this is true is never sent (not settable by JSON)
    duplicates: Share = 0.0  # share of events sent twice
    reordering: Share = 0.0  # share of deliveries held until later ones have passed
    reorder_window: Annotated[int, Field(ge=1)] = 10  # upper bound on later deliveries that pass a held one
    flush_after: Seconds = 0.05  # a held delivery goes out at the latest after this
    delay: tuple[Seconds, Seconds] = (0.0, 0.0)  # each first attempt waits for a time between these
    wrong_signatures: Share = 0.0  # forged deliveries, as a share of events
    concurrency: Annotated[int, Field(ge=1)] = 8  # requests in progress at the same time
    keep_alive: bool = False  # reuse connections: faster, but a receiver that closes idle ones seems to be down
    timeout: Seconds = 10.0  # one attempt
    retries: Annotated[int, Field(ge=0)] = 6  # after the first attempt, on non-2xx or no answer
    retry_base: Seconds = 0.1  # the n-th retry waits retry_base * 2 ** (n - 1)
    retry_signs_again: bool = False  # False: a retry carries its first signature and time

    _listeners: list[Callable[[], None]] = field(default_factory=list, repr=False, compare=False)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set one knob and notify the listeners, so that, for example, the end of a pause takes effect at once."""
        super().__setattr__(name, value)
        for listener in getattr(self, "_listeners", ()):
            listener()

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener`, which must be thread-safe and fast, after every change."""
        self._listeners.append(listener)

    def update(self, values: JSON) -> None:
        """Set knobs from JSON, e.g. {"loss": 0.1, "delay": [0, 0.2]}.

        Raises:
            ValueError: a name is unknown, or a value does not have the knob's type. Then no knob is set.
        """
        if unknown := sorted(values.keys() - _TYPES.keys()):
            raise ValueError(f"unknown knobs: {', '.join(unknown)}; there are {', '.join(sorted(_TYPES))}")
        checked = {}
        for name, value in values.items():
            try:
                checked[name] = TypeAdapter(_TYPES[name]).validate_json(json.dumps(value), strict=True)
            except ValidationError as error:
                raise ValueError(problems(error, name)) from None
        for name, value in checked.items():
            setattr(self, name, value)

    def as_json(self) -> JSON:
        """Return all knobs that JSON can represent."""
        return {name: getattr(self, name) for name in sorted(_TYPES)}


_TYPES = {
    name: hint
    for name, hint in get_type_hints(Knobs, include_extras=True).items()
    if name not in ("lose", "_listeners")
}
"""The type of each knob that JSON can represent."""
