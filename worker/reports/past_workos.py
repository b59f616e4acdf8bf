"""Access at an earlier time as WorkOS had it, reconstructed from `changes` and `late_versions`.

Both have WorkOS's time of each state. An event says when WorkOS made a change. A change that only a read found was made
in an interval. Within such intervals, the answer is found for both possibilities: the change had not been made yet, and
it had. Where the two differ, it is approximate.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from itertools import groupby, product
from operator import itemgetter
from typing import Any, NamedTuple

import orjson
from sqlalchemy import (
    CTE,
    ColumnElement,
    Connection,
    Text,
    bindparam,
    case,
    cast,
    column,
    func,
    literal,
    null,
    or_,
    select,
)
from sqlalchemy.dialects.postgresql import JSONB

from models.bulk import is_any_of
from models.rows import all_rows
from models.tables import Cause, Change, DeletedBy, Event, FailedEffect, LateVersion, MirrorState, Tail
from models.types import JsonObject, JsonValue, Record
from worker.errors import NotKeptError
from worker.kinds import Kind
from worker.kinds.membership import MEMBERSHIP, Membership
from worker.kinds.organization import ORGANIZATION
from worker.kinds.role import ROLE, Role
from worker.kinds.user import USER
from worker.mirror.apply import recorded_state, stored_rows
from worker.mirror.uncertainty import ANY
from worker.reports.past import (
    ACCESS_FIELDS,
    CAUSE,
    PREFIX,
    Moment,
    members_over,
    moment_of,
    recorded_column,
    role_maps,
)

KINDS = (ORGANIZATION, USER, ROLE, MEMBERSHIP)
"""The kinds of objects that decide who has access."""
DECISIVE = (*ACCESS_FIELDS, "workos_roles", "resource_type")
"""The fields of these objects that decide who has access."""
BATCH = 1_000
"""Number of people whose changes are read at once."""
ACTOR = ("actor_id", "actor_source")
Person = tuple[str, str]
"""A workspace and a user, by id."""
Contents = dict[Kind, dict[str, JsonObject]]
"""Kind → id → content, as `changes` contains it."""


class Step(NamedTuple):
    """A state of an object. It began after `earliest` and by `latest`; if the time is known, both are equal."""

    earliest: datetime
    latest: datetime
    before: JsonObject | None
    content: JsonObject
    cause: Record
    """The columns `CAUSE` without the time."""
    until: datetime | None = None
    """Only of a late version: when the next state began, if known."""

    def has_begun(self, at: datetime, *, early: bool) -> bool:
        """Return whether this state had begun; if `early`, assume that it began as early as possible, else as late."""
        return self.latest <= at or (early and self.earliest < at)


class History(NamedTuple):
    """The known states of an object: those of the mirror, in its order; late versions by time; and the state now."""

    steps: list[Step]
    late: list[Step]
    now: JsonObject | None

    def content(self, at: datetime, *, early: bool) -> JsonObject | None:
        """Return the state at a time, or None, assuming that each change was made as early, or as late, as possible."""
        begun = [step for step in self.steps if step.has_begun(at, early=early)]
        base = begun[-1] if begun else None
        since = None if base is None else base.earliest if early else base.latest
        for step in reversed(self.late):
            if step.latest <= at and (step.until is None or at < step.until) and (since is None or since < step.latest):
                return step.content
        if base is not None:
            return base.content
        return self.steps[0].before if self.steps else self.now

    def last_change(self, at: datetime) -> Step | None:
        """Return the last change of access up to a time; None if it is not known."""
        return max(self.changes(at), key=lambda step: step.latest, default=None)

    def uncertain(self, at: datetime) -> list[Step]:
        """Return the changes that WorkOS may or may not have made by this time, if access depends on that."""
        if _decisive(self.content(at, early=False)) == _decisive(self.content(at, early=True)):
            return []
        return [step for step in self.steps if step.earliest < at < step.latest]

    def changes(self, at: datetime) -> Iterator[Step]:
        """Yield each change of access up to a time."""
        begun = [step for step in (*self.late, *self.steps) if step.latest <= at]
        before = None
        for step in sorted(begun, key=lambda step: step.latest):
            if before is None:
                before = step.before
            if _decisive(before) != _decisive(step.content):
                yield step
            before = step.content


def _decisive(content: JsonObject | None) -> Any:
    return content and [content.get(name) for name in DECISIVE]


def moment_as_workos(tx: Connection, at: datetime) -> Moment:
    """Return the moment at an aware time, by WorkOS's clock.

    Raises:
        FutureTimeError: the time has not come yet, by the database's clock.
        NotKeptError: what WorkOS had then cannot be reconstructed.
    """
    moment = moment_of(tx, at)
    since = tx.execute(select(MirrorState.late_versions_since)).scalar_one()
    if since is not None and at < since:
        why = "because WorkOS's times were not recorded before the upgrade"
        raise NotKeptError(f"{_iso(at)} is too long ago: the earliest time is {_iso(since)}, {why}")
    return moment


def members_as_workos(tx: Connection, at: datetime, *which: ColumnElement[bool]) -> list[Record]:
    """Return the rows of `workspace_members` at an aware time, by WorkOS's clock, sorted by membership id.

    `which` are conditions on the rows of memberships now, and select all those of a workspace, of a person, or of both.
    Each row also has:

    - `CAUSE`: the last change of the access up to then. `changed_at` is WorkOS's time.
    - `approximate`: whether it is uncertain that the person had this access. Such people are included.
    - `changed_after`, `changed_before`: the interval in which WorkOS changed the access, if a read found the change.
      If a failed event may have changed it: the time of that event, if known, and None.

    Raises as `moment_as_workos`.
    """
    moment = moment_as_workos(tx, at)
    columns = (Membership.id, Membership.organization_id, Membership.user_id)
    person = itemgetter("organization_id", "user_id")
    found = all_rows(tx, select(*columns).where(*which, Membership.revision > 0).order_by(*columns[1:]))
    persons = [list(rows) for _, rows in groupby(found, key=person)]
    members: list[Record] = []
    for first in range(0, len(persons), BATCH):
        ids = _ids(tx, [row for rows in persons[first : first + BATCH] for row in rows])
        histories = {kind: histories_of(tx, kind, ids[kind]) for kind in KINDS}
        members += _members(tx, role_maps(moment), at, histories)
    return sorted(with_missing_events(tx, at, members), key=itemgetter("membership_id"))


def with_missing_events(tx: Connection, at: datetime, members: Sequence[Record]) -> Iterator[Record]:
    """Yield rows about memberships, and mark as approximate those that an unapplied event may have changed."""
    complete_to = tx.execute(select(Tail.complete_to)).scalar_one()
    if complete_to is None or at > complete_to:
        missing = {"approximate": True, "changed_after": complete_to, "changed_before": None}
        members = [row | missing for row in members]
    yield from _with_failed_events(tx, at, members)


def _with_failed_events(tx: Connection, at: datetime, members: Sequence[Record]) -> Iterator[Record]:
    """Yield rows, and mark as approximate those that a failed event up to a time may have changed."""
    affected = (FailedEffect.organization_id, FailedEffect.user_id)
    events = select(*affected, func.min(Event.occurred_at)).outerjoin(Event, Event.id == FailedEffect.event_id)
    of_workspaces = is_any_of(tx, FailedEffect.organization_id, {ANY, *(row["organization_id"] for row in members)})
    until = or_(Event.occurred_at.is_(None), Event.occurred_at <= at)
    failed = {
        (workspace, person): event_at
        for workspace, person, event_at in tx.execute(events.where(of_workspaces, until).group_by(*affected))
    }
    for row in members:
        times = [
            failed[each] for each in product((ANY, row["organization_id"]), (ANY, row["user_id"])) if each in failed
        ]
        if times:
            known = min((time for time in times if time is not None), default=None)
            yield row | {"approximate": True, "changed_after": known, "changed_before": None}
        else:
            yield row


def workspace_as_workos(tx: Connection, at: datetime, organization_id: str) -> Record | None:
    """Return the row of a workspace in `workspaces` at a time, as WorkOS had it, without `updated_at`; or None."""
    content = histories_of(tx, ORGANIZATION, [organization_id])[organization_id].content(at, early=False)
    if content is None:
        return None
    created_at = content["created_at"]
    columns = {name: content[name] for name in ("name", "external_id", "state")}
    columns |= {"created_at": datetime.fromisoformat(created_at) if created_at else None}
    columns |= {name: content.get(name) for name in ("stripe_customer_id", "metadata")}
    return {"organization_id": organization_id} | columns


def _iso(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")


def _ids(tx: Connection, memberships: Sequence[Record]) -> dict[Kind, set[str]]:
    workspaces = {row["organization_id"] for row in memberships if row["organization_id"]}
    of_workspaces = is_any_of(tx, Role.organization_id, workspaces) | Role.organization_id.is_(None)
    return {
        ORGANIZATION: workspaces,
        USER: {row["user_id"] for row in memberships if row["user_id"]},
        ROLE: set(tx.execute(select(Role.id).where(of_workspaces)).scalars()),
        MEMBERSHIP: {row["id"] for row in memberships},
    }


def histories_of(tx: Connection, kind: Kind, ids: Collection[str]) -> dict[str, History]:
    """Return the histories of objects by id."""
    late: dict[str, list[Step]] = defaultdict(list)
    of_late = (LateVersion.kind == kind.name, is_any_of(tx, LateVersion.object_id, ids))
    for row in all_rows(tx, select(LateVersion.__table__).where(*of_late).order_by(LateVersion.workos_at)):
        cause = {"cause": Cause.EVENT, "cause_id": row["event_id"], "actor_name": None}
        cause |= {name: row[name] for name in ACTOR}
        at = row["workos_at"]
        late[row["object_id"]].append(Step(at, at, None, row["content"], cause, row["workos_until"]))
    steps: dict[str, list[Step]] = defaultdict(list)
    of_changes = (Change.kind == kind.name, is_any_of(tx, Change.object_id, ids))
    for row in all_rows(tx, select(Change.__table__).where(*of_changes).order_by(Change.id)):
        id, latest = row["object_id"], row["workos_at"] or row["at"]
        known = [step.latest for step in (*late[id], *steps[id][-1:]) if step.latest < latest]
        earliest = latest if row["workos_after"] is None else min(latest, max((row["workos_after"], *known)))
        cause = {name: row[name] for name in CAUSE[1:]}
        steps[id].append(Step(earliest, latest, row["before"], row["after"], cause))
    now = stored_rows(tx, kind, sorted(set(ids) - steps.keys()))
    unchanged = {id: recorded_state(kind, state) for id, state in now.items()}
    return {id: History(steps[id], late[id], unchanged.get(id)) for id in ids}


def _members(
    tx: Connection, role_map: CTE, at: datetime, histories: dict[Kind, dict[str, History]]
) -> Iterator[Record]:
    """Yield the rows of `members_as_workos` for some people."""
    uncertain = {
        (kind, id): steps
        for kind in KINDS
        for id, history in histories[kind].items()
        if (steps := history.uncertain(at))
    }
    kinds = [kind for kind in KINDS if any(kind is of for of, _ in uncertain)]
    rows: dict[Person, Record] = {}
    answers: list[dict[Person, tuple[str, str]]] = []
    for choice in product((False, True), repeat=len(kinds)):
        early = dict(zip(kinds, choice, strict=True))
        contents: Contents = {
            kind: {
                id: content
                for id, history in histories[kind].items()
                if (content := history.content(at, early=early.get(kind, False))) is not None
            }
            for kind in KINDS
        }
        found = {(row["organization_id"], row["user_id"]): row for row in _view(tx, role_map, contents)}
        answers.append({person: (row["membership_id"], row["role"]) for person, row in found.items()})
        rows = found | rows
    for person, row in rows.items():
        objects = list(zip((ORGANIZATION, USER, MEMBERSHIP), (*person, row["membership_id"]), strict=True))
        changes = [step for kind, id in objects for step in histories[kind][id].changes(at)]
        last = max(changes, key=lambda step: step.latest, default=None)
        approximate = len({answer.get(person) for answer in answers}) > 1
        about = [] if last is None or last.earliest == last.latest else [last]
        if approximate:
            about = [step for of, steps in uncertain.items() if of in objects or of[0] is ROLE for step in steps]
        yield (
            row
            | (last.cause if last else dict.fromkeys(CAUSE[1:]))
            | {
                "changed_at": last and last.latest,
                "approximate": approximate,
                "changed_after": min((step.earliest for step in about), default=None),
                "changed_before": max((step.latest for step in about), default=None),
            }
        )


def _view(tx: Connection, role_map: CTE, contents: Contents) -> list[Record]:
    """Return the rows of `workspace_members` over objects with these contents."""
    sources = [_given(tx, kind, states, PREFIX + kind.table.__tablename__) for kind, states in contents.items()]
    of_person = Counter(map(_person, contents[MEMBERSHIP].values()))
    several = {id: state for id, state in contents[MEMBERSHIP].items() if of_person[_person(state)] > 1}
    siblings = _given(tx, MEMBERSHIP, several, f"{PREFIX}siblings")
    return all_rows(tx, select(members_over(tx, *sources, siblings, role_map)))


def _person(membership: JsonObject) -> tuple[str | None, str | None]:
    return membership["organization_id"], membership["user_id"]


def _given(tx: Connection, kind: Kind, states: dict[str, JsonObject], name: str) -> CTE:
    """Return the objects with these contents, by id, in the form of the table of their kind."""
    given = bindparam(f"given_{name}", orjson.dumps(states).decode(), type_=Text())
    each = func.jsonb_each(cast(given, JSONB)) if tx.dialect.name == "postgresql" else func.json_each(given)
    rows = each.table_valued(column("key", Text), column("value", JsonValue), name=f"each_{name}")
    deleted_by = case((rows.c.value["state"].as_string() == "deleted", literal(DeletedBy.EVENT)), else_=null())
    own = (kind.table.__table__.c[column] for column in kind.columns)
    columns = (recorded_column(column, rows.c.value).label(column.name) for column in own)
    given_rows = select(rows.c.key.label("id"), deleted_by.label("deleted_by"), *columns).cte(name)
    return given_rows.prefix_with("MATERIALIZED")  # so that the database joins by hash or index, not row by row
