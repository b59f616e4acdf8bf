"""Keeps states that WorkOS had and the mirror never had: their events arrived after the event of a newer state.

`worker.reports.past_workos` needs them.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, column, func, select, values

from models.bulk import insert_new, is_any_of
from models.outcomes import Outcome
from models.tables import Event, LateVersion
from models.types import JsonObject
from worker.decision.decide import State
from worker.decision.payload import EPOCH, Origin

Subject = tuple[str, str]
"""The kind and the id of an object."""


class LateState(NamedTuple):
    """A state that lost against `current`: it is older, or has the same times."""

    event_id: str
    kind: str
    object_id: str
    organization_id: str | None
    content: JsonObject
    """As in `changes`."""
    state: State
    current: State
    origin: Origin


def note_late_versions(tx: Connection, late: Sequence[LateState], arrived: Iterable[tuple[Subject, datetime]]) -> None:
    """Keep states that arrived late, unless their event won earlier and is only replayed.

    `arrived` has the object and the time of each event in the same batch.
    """
    times: dict[Subject, list[datetime]] = defaultdict(list)
    for subject, at in arrived:
        times[subject].append(at)
    ids = is_any_of(tx, Event.id, [each.event_id for each in late])
    won = set(
        tx.execute(select(Event.id).where(ids, Event.outcome.in_((Outcome.APPLIED, Outcome.UNCHANGED)))).scalars()
    )
    kept = [each for each in late if each.event_id not in won and each.state.since != EPOCH]
    stored = _next_stored(tx, kept)
    rows = [
        {
            "event_id": each.event_id,
            "kind": each.kind,
            "object_id": each.object_id,
            "organization_id": each.organization_id,
            "content": each.content,
            "workos_at": each.state.since,
            "workos_until": min(_next_times(each, stored, times[each.kind, each.object_id]), default=None),
            "actor_id": each.origin.actor_id,
            "actor_source": each.origin.actor_source,
        }
        for each in kept
    ]
    insert_new(tx, LateVersion, rows)


def _next_stored(tx: Connection, late: Sequence[LateState]) -> dict[str, datetime | None]:
    """Return, for the event of each late state, when the next stored event of its object occurred."""
    if not late:
        return {}
    # An object may have tens of thousands of events, so the database chooses the next.
    columns = (Event.id, Event.kind, Event.object_id, Event.occurred_at)
    rows = [(each.event_id, each.kind, each.object_id, each.state.version.event_at) for each in late]
    # A CTE, because SQLite cannot name the columns of VALUES elsewhere.
    given = values(*(column(each.key, each.type) for each in columns)).data(rows).cte("late").c
    of_object = (Event.kind == given.kind, Event.object_id == given.object_id)
    following = select(func.min(Event.occurred_at)).where(*of_object, Event.occurred_at > given.occurred_at)
    return dict(tx.execute(select(given.id, following.scalar_subquery())).all())


def _next_times(
    late: LateState, stored: Mapping[str, datetime | None], times: Iterable[datetime]
) -> Iterator[datetime]:
    """Yield when later versions began: in the inbox, in the same batch, and in the mirror."""
    if (stored_at := stored[late.event_id]) is not None:
        yield stored_at
    yield from (at for at in times if at > late.state.version.event_at)
    current = late.current
    if current.version.from_api and not current.deleted:
        # Without a later update, the read may have shown this very state.
        yield current.since if current.since > late.state.since else current.version.event_at
