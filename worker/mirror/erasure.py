"""Erasure: blanks a deleted user's personal data (`Kind.personal`) in the mirror, history, drift, payloads and audit.

It also blanks the personal data in the user's memberships, in invitations to one of their addresses, and in invitations
that the user accepted, unless another user has the address.

Payloads are blanked first, in small transactions, and the user last: the addresses to search for come from the user and
their history. So an interrupted erasure can start again with the same result.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import NamedTuple

import orjson
from sqlalchemy import ColumnElement, Connection, Engine, Select, delete, exists, func, or_, select, update
from sqlalchemy.orm import InstrumentedAttribute

from models.addresses import comparable
from models.bulk import is_any_of
from models.database import in_transaction, read_transaction
from models.tables import (
    Action,
    Audit,
    Cause,
    Change,
    Drift,
    Event,
    EventStatus,
    FailedAttempt,
    HookDelivery,
    InvitedAddress,
    LateVersion,
    MirrorState,
    Run,
    UserAddress,
    Via,
)
from models.types import JsonObject, db_ago, db_now, inline_literal
from models.views import auto_join_blocks
from worker import audit
from worker.decision.decide import State
from worker.decision.mentions import Mentions, mentions
from worker.decision.payload import is_id, parse_json
from worker.errors import OperatorError, UnknownIdError, WorkosSyncError
from worker.kinds import Kind
from worker.kinds.addresses import sent_to
from worker.kinds.invitation import INVITATION, Invitation
from worker.kinds.membership import MEMBERSHIP, Membership
from worker.kinds.user import USER, User
from worker.mirror.apply import ACTOR_BLANKED, blanked, change, insert_and_lock_rows, note_changes, save_rows
from worker.mirror.change_rows import CausedBy, ChangeRow

BATCH = 500
"""Payloads searched by one query, and blanked in one transaction."""
MAX_USERS = 100
"""Users erased together: one search of the inbox covers all of them."""
MAX_VALUES = 5_000
"""Values in one statement."""
PERSON: dict[Kind, InstrumentedAttribute[str | None]] = {
    MEMBERSHIP: Membership.user_id,
    INVITATION: Invitation.accepted_user_id,
}
"""Kind of object that is erased with its person → the column with the person's id."""


@dataclass(frozen=True, slots=True)
class Erased:
    """Numbers of rows that an erasure blanked, or could not blank."""

    payloads: int
    failed_payloads: int
    """The part of `payloads` that belongs to failed events, which can no longer be replayed."""
    changes: int
    drift: int
    hook_errors: int
    reasons: int
    """Reasons in the audit that concern the person. Their copies in `runs` are blanked too."""
    pending: int
    """Pending events that name the person. Their payloads are kept until they are processed."""
    unparsed: int
    """Payloads that are not JSON. They were searched as text, where an unusual spelling of an address is missed."""


def forget(
    engine: Engine, user_id: str, actor: audit.Actor, searched: Callable[[int], None] = lambda _: None
) -> Erased:
    """Blank a deleted user's personal data everywhere in the database, now. Idempotent.

    For a user who is already erased, blanks the payloads that arrived since and contain the user's id. `searched` is
    called after each batch with the number of payloads searched so far. Raises `UnknownIdError` if the mirror has no
    such user, and `OperatorError` if the user still exists in WorkOS, which would send the data again.
    """
    with read_transaction(engine) as tx:
        row = tx.execute(select(User.deleted_by).where(User.id == user_id)).one_or_none()
    if row is None:
        raise UnknownIdError(f"the mirror has no user {user_id}")
    if row.deleted_by is None:
        raise OperatorError(f"user {user_id} still exists in WorkOS; delete it there first, or its data comes back")
    return _erase(engine, [user_id], actor, searched)


def erase_deleted(engine: Engine, period: timedelta, stopping: Callable[[], bool]) -> int:
    """Erase the users who were deleted longer ago than `period`; return how many.

    If `stopping` returns True, the work ends early, and the next call erases the remaining users.
    """
    old = User.touched_at < db_ago(period)
    due = select(User.id).where(User.deleted_by.is_not(None), ~User.erased, old).limit(MAX_USERS)

    def stop_if_asked(_searched: int) -> None:
        if stopping():
            raise _StoppedError

    total = 0
    while not stopping():
        with read_transaction(engine) as tx:
            ids = list(tx.execute(due).scalars())
        if not ids:
            break
        try:
            _erase(engine, ids, audit.Actor("ERASE_AFTER_DAYS", Via.CLOCK), stop_if_asked)
        except _StoppedError:
            break
        total += len(ids)
    return total


def about_erased() -> ColumnElement[bool]:
    """Return the condition that a processed event is about an erased user, or a membership or invitation of one."""
    return _about(Event, select(User.id).where(User.erased), select(Invitation.id).where(Invitation.erased))


def _about(
    row: type[Event | HookDelivery], users: Select[str] | list[str], invitations: Select[str] | list[str]
) -> ColumnElement[bool]:
    memberships = select(Membership.id).where(Membership.user_id.in_(users))
    of_kind = ((USER, users), (MEMBERSHIP, memberships), (INVITATION, invitations))
    return or_(*((row.kind == kind.name) & row.object_id.in_(ids) for kind, ids in of_kind))


def unneeded_addresses() -> tuple[ColumnElement[bool], ...]:
    """Return the conditions for hashed addresses of erased users that no block of auto-join needs any more."""
    erased = select(User.id).where(User.erased)
    return UserAddress.user_id.in_(erased), ~exists().where(auto_join_blocks.c.user_id == UserAddress.user_id)


def unneeded_invited_addresses() -> tuple[ColumnElement[bool], ...]:
    """Return the conditions for hashed addresses of erased invitations that no block of auto-join needs any more."""
    erased = select(Invitation.id).where(Invitation.erased)
    blocks = exists().where(auto_join_blocks.c.email_hash == InvitedAddress.email_hash)
    return InvitedAddress.invitation_id.in_(erased), ~blocks


def _invitations_of(tx: Connection, user_ids: Sequence[str]) -> list[str]:
    """Return the sorted ids of the invitations whose address is personal data of these users.

    They were sent to an address that one of them ever had, or one of them accepted them (`_accepted_as_own`).
    """
    accepted = select(Invitation.id).where(is_any_of(tx, Invitation.accepted_user_id, user_ids), _accepted_as_own())
    return sorted({*tx.execute(sent_to(tx, user_ids)).scalars(), *tx.execute(accepted).scalars()})


def _accepted_as_own() -> ColumnElement[bool]:
    """Return the condition that nobody but the user who accepted an invitation is known to have its address."""
    return ~_has_holder(UserAddress.user_id != Invitation.accepted_user_id)


def _sent_before_erasure() -> ColumnElement[bool]:
    """Return the condition that an invitation is older than the deletion of an erased user who had its address.

    No other user may have it. Known only while the address of the erased user is kept (`unneeded_addresses`).
    """
    holder = User.id == UserAddress.user_id
    older = Invitation.created_at <= func.coalesce(User.event_at, User.touched_at)
    return _has_holder(holder & User.erased & older) & ~_has_holder(holder & ~User.erased)


def _has_holder(which: ColumnElement[bool]) -> ColumnElement[bool]:
    """Return the condition that a user with an invitation's address meets `which`."""
    same = UserAddress.email_hash == InvitedAddress.email_hash
    return exists().where(InvitedAddress.invitation_id == Invitation.id, same, which)


def erase_late(tx: Connection, kind: Kind) -> int:
    """Erase the next memberships or invitations of erased users that arrived after the erasure; return how many."""
    of_erased: ColumnElement[bool] = PERSON[kind].in_(select(User.id).where(User.erased))
    if kind is INVITATION:
        of_erased = of_erased & _accepted_as_own() | _sent_before_erasure()
    late = select(kind.table.id).where(~kind.table.erased, of_erased).limit(BATCH)
    ids = sorted(tx.execute(late).scalars())
    note_changes(tx, [each.row for each in _blank_objects(tx, kind, ids, (Cause.SETTINGS, "ERASE_AFTER_DAYS"))])
    return len(ids)


def blank_failed_or_dismissed(tx: Connection) -> int:
    """Blank the payloads of failed and dismissed events that contain the id of an erased user; return how many.

    Such events arrived after the erasure. The inbox may not know their object, so their whole payloads are searched.
    """
    failed_or_dismissed = Event.status.in_((EventStatus.FAILED, EventStatus.DISMISSED))
    found = tx.execute(select(Event.id, Event.body).where(failed_or_dismissed, Event.body.is_not(None)))
    words = {id: mentions(body or b"").words for id, body in found}
    erased = _erased_among(tx, set().union(*words.values()))
    return len(_blank(tx, [id for id, named in words.items() if not named.isdisjoint(erased)]))


class _StoppedError(WorkosSyncError):
    pass


def _erase(engine: Engine, user_ids: Sequence[str], actor: audit.Actor, searched: Callable[[int], None]) -> Erased:
    with read_transaction(engine) as tx:
        began = tx.execute(select(db_now())).scalar_one()
        addresses = frozenset(map(comparable, _known_addresses(tx, user_ids)))
    search = _Search(engine, frozenset(user_ids), addresses)
    search.blank(searched)
    reasons = search.blank_reasons()
    actor = actor._replace(reason=search.without_mention(actor.reason))
    _blank_actors(engine, user_ids)  # before they count as erased, which a kill would leave undone
    numbers = [in_transaction(engine, _erase_user, id, actor) for id in user_ids]
    _blank_actors(engine, user_ids)  # what they did meanwhile
    # Events that arrived meanwhile. The drain blanks those that arrive later or are still pending.
    search.blank(lambda _: None, (Event.received_at >= began) | Event.id.in_(search.pending))
    is_pending = Event.status == inline_literal(EventStatus.PENDING)
    with read_transaction(engine) as tx:
        pending = tx.execute(select(func.count()).where(Event.id.in_(search.pending), is_pending)).scalar_one()
    changes, drift, hook_errors = map(sum, zip(*numbers, strict=True))
    return Erased(
        payloads=len(search.blanked),
        failed_payloads=list(search.blanked.values()).count(EventStatus.FAILED),
        changes=changes,
        drift=drift,
        hook_errors=hook_errors,
        reasons=reasons,
        pending=pending,
        unparsed=len(search.unparsed),
    )


def _known_addresses(tx: Connection, user_ids: Sequence[str]) -> Iterator[str]:
    """Yield every address that these users have or had, as far as the database knows."""
    yield from _addresses_of(tx, USER, User.email, user_ids)
    yield from _addresses_of(tx, INVITATION, Invitation.email, _invitations_of(tx, user_ids))


def _addresses_of(
    tx: Connection, kind: Kind, column: InstrumentedAttribute[str | None], ids: Sequence[str]
) -> Iterator[str]:
    """Yield every address that objects of a kind have or had."""
    yield from filter(None, tx.execute(select(column).where(is_any_of(tx, kind.table.id, ids))).scalars())
    changes = select(Change.before, Change.after).where(Change.kind == kind.name)
    late = select(LateVersion.content).where(LateVersion.kind == kind.name, is_any_of(tx, LateVersion.object_id, ids))
    for row in (*tx.execute(changes.where(is_any_of(tx, Change.object_id, ids))), *tx.execute(late)):
        yield from (content["email"] for content in row if content and content.get("email"))
    drift = select(Drift.fields).where(Drift.kind == kind.name, is_any_of(tx, Drift.object_id, ids))
    for fields in tx.execute(drift).scalars():
        yield from filter(None, (fields or {}).get("email") or ())
    events = select(Event.body).where(Event.kind == kind.name, is_any_of(tx, Event.object_id, ids))
    for body in tx.execute(events.where(Event.body.is_not(None))).scalars():
        email = parse_json(body or b"")["data"].get("email")  # its object is known, so it has `data`
        if isinstance(email, str):
            yield email


class _Search:
    """Searches payloads for users, and blanks the payloads that mention one of the `ids` or `addresses`."""

    def __init__(self, engine: Engine, ids: frozenset[str], addresses: frozenset[str]) -> None:
        self._engine, self._ids, self._addresses = engine, ids, addresses
        self.blanked: dict[str, EventStatus] = {}
        self.pending: set[str] = set()
        """Ids of pending events that mention one of the users."""
        self.unparsed: set[str] = set()

    def blank(self, searched: Callable[[int], None], *which: ColumnElement[bool]) -> None:
        """Search the payloads of all events that match `which`.

        `searched` is called after each batch with the number of payloads searched so far.
        """
        kept = select(Event.id, Event.body).where(Event.body.is_not(None), *which).order_by(Event.id).limit(BATCH)
        after, number = "", 0
        while True:
            with read_transaction(self._engine) as tx:
                found = tx.execute(kept.where(Event.id > after)).all()
            if not found:
                break
            named = [row.id for row in found if self._is_named(row.id, row.body or b"")]
            blanked = in_transaction(self._engine, _blank, named) if named else {}
            self.blanked |= blanked
            self.pending = self.pending.union(named).difference(blanked)
            after = found[-1].id
            number += len(found)
            searched(number)

    def blank_reasons(self) -> int:
        """Blank the audit's reasons that concern the users, its details with their addresses, and reasons of runs.

        Returns the number of reasons in the audit. The reason of an erasure concerns the user only if it mentions them.
        """
        columns = (Audit.id, Audit.kind, Audit.object_id, Audit.action, Audit.reason, Audit.details)
        with read_transaction(self._engine) as tx:
            acts = tx.execute(select(*columns).where(or_(Audit.reason.is_not(None), Audit.details.is_not(None)))).all()
            runs = tx.execute(select(Run.id, Run.reason).where(Run.reason.is_not(None))).all()
        reasons = [
            act.id
            for act in acts
            if act.reason
            and (
                (act.kind == USER.name and act.object_id in self._ids and act.action != Action.FORGET)
                or self._mentions(act.reason)
            )
        ]
        addresses = {act.id: mentions(orjson.dumps(act.details)).addresses for act in acts if act.details}
        details = [id for id, found in addresses.items() if not found.isdisjoint(self._addresses)]
        of_runs = [run.id for run in runs if self._mentions(run.reason or "")]
        if reasons or details or of_runs:
            in_transaction(self._engine, _blank_reasons, reasons, details, of_runs)
        return len(reasons)

    def without_mention(self, reason: str | None) -> str | None:
        """Return a reason, or None if it mentions one of the users."""
        return None if reason is None or self._mentions(reason) else reason

    def _is_named(self, event_id: str, body: bytes) -> bool:
        found = mentions(body)
        named = self._names(found)
        if not (found.is_json or named):
            self.unparsed.add(event_id)
        return named

    def _mentions(self, text: str) -> bool:
        return self._names(mentions(text.encode()))

    def _names(self, found: Mentions) -> bool:
        return not (found.words.isdisjoint(self._ids) and found.addresses.isdisjoint(self._addresses))


def _blank(tx: Connection, event_ids: Collection[str]) -> dict[str, EventStatus]:
    """Blank the payloads of these events unless they are pending; return the ids and statuses of the blanked ones."""
    chosen = select(Event.id, Event.status, Event.error, Event.traceback).where(
        is_any_of(tx, Event.id, event_ids), Event.status != EventStatus.PENDING, Event.body.is_not(None)
    )
    found = tx.execute(chosen.order_by(Event.id).with_for_update()).all()
    for row in found:
        quotes = row.error and row.traceback  # the message of an unexpected exception may quote the payload
        error = row.error.partition(":")[0] if quotes else row.error
        tx.execute(update(Event).where(Event.id == row.id).values(body=None, error=error))
    # So may the messages of earlier attempts.
    tx.execute(delete(FailedAttempt).where(is_any_of(tx, FailedAttempt.event_id, [row.id for row in found])))
    return {row.id: row.status for row in found}


def _blank_reasons(tx: Connection, reasons: list[int], details: list[int], of_runs: list[str]) -> None:
    for id in reasons:
        tx.execute(update(Audit).where(Audit.id == id).values(reason=None))
    for id in details:
        tx.execute(update(Audit).where(Audit.id == id).values(details=None))
    tx.execute(update(Run).where(is_any_of(tx, Run.id, of_runs)).values(reason=None))


def _erased_among(tx: Connection, words: Iterable[str]) -> set[str]:
    """Return the words that are ids of erased users."""
    ids = sorted(word for word in words if is_id(word))
    parts = (ids[first : first + MAX_VALUES] for first in range(0, len(ids), MAX_VALUES))
    queries = (select(User.id).where(User.erased, is_any_of(tx, User.id, part)) for part in parts)
    return {id for query in queries for id in tx.execute(query).scalars()}


def has_actor_data() -> ColumnElement[bool]:
    """Return the condition that a change has the name of an actor, or previous attributes."""
    return or_(Change.actor_name.is_not(None), Change.previous_attributes.is_not(None))


def _blank_actors(engine: Engine, user_ids: Sequence[str]) -> None:
    """Blank `ACTOR_BLANKED` in the changes that users made, except old ones, where retention has blanked them.

    There is no index on actors, so the rows are searched outside of the transactions that blank them.
    """
    after = select(MirrorState.actors_blanked_to).scalar_subquery()
    with read_transaction(engine) as tx:
        made = select(Change.id).where(Change.id > after, is_any_of(tx, Change.actor_id, user_ids), has_actor_data())
        ids = list(tx.execute(made).scalars())
    for first in range(0, len(ids), BATCH):
        some = update(Change).where(Change.id.in_(ids[first : first + BATCH])).values(ACTOR_BLANKED)
        in_transaction(engine, Connection.execute, some)


def _erase_user(tx: Connection, user_id: str, actor: audit.Actor) -> tuple[int, int, int]:
    """Blank a user, their invitations and memberships; return the numbers of rows of `changes`, drift and hook errors.

    Does nothing if the user is not deleted. If the user is already erased, only an operator's request is recorded.
    """
    state = insert_and_lock_rows(tx, USER, [user_id])[user_id]
    by_operator = actor.via is not Via.CLOCK
    if state is None or not state.deleted or (state.erased and not by_operator):
        return 0, 0, 0
    audit.note(tx, actor, Action.FORGET, kind=USER.name, object_id=user_id)
    if state.erased:
        return 0, 0, 0
    caused_by = (Cause.OPERATOR if by_operator else Cause.SETTINGS), actor.who
    invitation_ids = _invitations_of(tx, [user_id])
    membership_ids = sorted(tx.execute(select(Membership.id).where(Membership.user_id == user_id)).scalars())
    blanked = [
        _blank_object(tx, USER, user_id, state, caused_by),
        *_blank_objects(tx, INVITATION, invitation_ids, caused_by),
        *_blank_objects(tx, MEMBERSHIP, membership_ids, caused_by),
    ]
    of_invitations = is_any_of(tx, InvitedAddress.invitation_id, invitation_ids)
    tx.execute(delete(InvitedAddress).where(of_invitations, *unneeded_invited_addresses()))
    tx.execute(delete(UserAddress).where(UserAddress.user_id == user_id, *unneeded_addresses()))
    # A hook's error and traceback come from the receiver and may quote anything.
    about_user = _about(HookDelivery, [user_id], invitation_ids)
    errors = update(HookDelivery).where(about_user, HookDelivery.error.is_not(None))
    hook_errors = tx.execute(errors.values(error=None, traceback=None)).rowcount
    note_changes(tx, [each.row for each in blanked])
    return sum(each.changes for each in blanked), sum(each.drift for each in blanked), hook_errors


class _Blanked(NamedTuple):
    """An object whose personal data was blanked: its row for `changes`, and the numbers of rows that were blanked."""

    row: ChangeRow
    changes: int
    drift: int


def _blank_objects(tx: Connection, kind: Kind, ids: Sequence[str], caused_by: CausedBy) -> list[_Blanked]:
    """Blank those of the objects (sorted ids) that are not erased yet."""
    found = insert_and_lock_rows(tx, kind, ids) if ids else {}
    return [_blank_object(tx, kind, id, state, caused_by) for id, state in found.items() if state and not state.erased]


def _blank_object(tx: Connection, kind: Kind, id: str, state: State, caused_by: CausedBy) -> _Blanked:
    """Blank the personal data of a locked object in the mirror, in its changes and in drift."""
    after = blanked(kind, state)
    before = replace(after, erased=False)
    save_rows(tx, kind, {id: after})
    history = (Change.kind == kind.name, Change.object_id == id)
    changes = tx.execute(select(Change.id, Change.before, Change.after).where(*history)).all()
    for row in changes:
        contents = {"before": _blanked_content(kind, row.before), "after": _blanked_content(kind, row.after)}
        tx.execute(update(Change).where(Change.id == row.id).values(contents | ACTOR_BLANKED))
    late = (LateVersion.kind == kind.name, LateVersion.object_id == id)
    for event_id, content in tx.execute(select(LateVersion.event_id, LateVersion.content).where(*late)).all():
        version = update(LateVersion).where(LateVersion.event_id == event_id)
        tx.execute(version.values(content=_blanked_content(kind, content)))
    drift = update(Drift).where(Drift.kind == kind.name, Drift.object_id == id, Drift.fields.is_not(None))
    drift_number = tx.execute(drift.values(fields=None)).rowcount
    return _Blanked(change(kind, id, before, after, *caused_by), len(changes), drift_number)


def _blanked_content(kind: Kind, content: JsonObject | None) -> JsonObject | None:
    return None if content is None else {"erased": False, **content, **dict.fromkeys(kind.personal)}
