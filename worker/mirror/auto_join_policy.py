"""Auto-join as settings and operators decide it: the mode, the settings of a workspace, blocks on persons.

The rule that keeps a removed person out is the view `auto_join_blocks` in `models.views`.
"""

import structlog
from sqlalchemy import Connection, Engine, Select, and_, delete, exists, func, insert, or_, select, update
from sqlalchemy.orm import aliased

from models import tables
from models.addresses import normalize_address
from models.bulk import dialect_insert, insert_new
from models.database import CHANGES_LOCK, advisory_lock, in_transaction, read_transaction, transactional
from models.rows import read_rows
from models.tables import (
    Action,
    AutoJoinMode,
    Cause,
    Change,
    InvitedAddress,
    Join,
    JoinState,
    MirrorState,
    UnblockedInvitation,
    UnblockedMembership,
    UserAddress,
    Via,
    WorkspaceSettings,
)
from models.types import JsonObject, Record, db_now, no_lookup
from models.views import auto_join_blocks, auto_join_domains, workspace_members, workspaces
from worker import audit
from worker.errors import ConfigurationError, OperatorError, UnknownIdError
from worker.kinds.addresses import sent_to
from worker.kinds.domain import Domain
from worker.kinds.invitation import INVITATION, Invitation
from worker.kinds.membership import Membership
from worker.kinds.organization import Organization
from worker.kinds.user import USER, User
from worker.mirror.apply import note_changes
from worker.mirror.auto_join import add_joins, request_search_where, same_person
from worker.mirror.change_rows import ChangeRow

log = structlog.get_logger()

BLOCKING = (JoinState.BLOCKED, JoinState.UNDONE)
"""States of joins that keep a person out."""
COUNTS_TICK = "counts"
"""The tick that says when `refresh_counts` last counted."""


@transactional
def adopt(tx: Connection, mode: str, *, existing: bool) -> None:
    """Store the settings `AUTO_JOIN` and `AUTO_JOIN_EXISTING`, so that all processes use the same ones.

    If more people may join than before (`searches_for_people`), requests a search of every auto-join domain for those
    who have already signed up.
    """
    wanted: dict[str, object] = {"auto_join": mode, "auto_join_existing": existing}
    current = tx.execute(select(MirrorState.__table__).with_for_update()).mappings().one()
    changed = [name for name, value in wanted.items() if current[name] != value]
    if not changed:
        return
    log.info("auto_join_settings_changed", **wanted)
    changes = {name.upper(): [current[name], wanted[name]] for name in changed}
    audit.note(tx, audit.Actor(", ".join(changes), Via.SETTINGS), Action.CHANGE_AUTO_JOIN_MODE, settings=changes)
    tx.execute(update(MirrorState).values(wanted))
    if searches_for_people(current["auto_join"], mode, existing=existing):
        request_search_where(tx, (Cause.SETTINGS, changed[0].upper()))


def searches_for_people(before: str, after: str, *, existing: bool) -> bool:
    """Return whether changed settings search for people who have already signed up.

    `before` and `after` are the modes, and `existing` is the new `AUTO_JOIN_EXISTING`.
    """
    return after == AutoJoinMode.PROVISION and (existing or before == AutoJoinMode.MIRROR)


@transactional
def set_workspace(
    tx: Connection,
    organization_id: str,
    actor: audit.Actor,
    *,
    auto_join: bool | None = None,
    default_role: str | None = None,
) -> JsonObject:
    """Change a workspace's settings, and return all of them as `workspace_settings` does.

    None leaves a setting unchanged. `changes` records the operator and the reason. Raises `ConfigurationError` if no
    setting or no reason is given, and `UnknownIdError` if the mirror has no such workspace.
    """
    given = {"auto_join": auto_join, "default_role": default_role}
    wanted: JsonObject = {name: value for name, value in given.items() if value is not None}
    if not wanted:
        raise ConfigurationError("nothing to change: give the switch, the role, or both")
    _require(tx, Organization, "workspace", organization_id)
    about = {"kind": tables.WORKSPACE_SETTINGS, "object_id": organization_id, "organization_id": organization_id}
    audit.note(tx, actor, Action.SET_AUTO_JOIN, **about, **wanted)
    who, why = actor.who, actor.reason
    mirror = tx.execute(select(MirrorState.__table__).with_for_update()).one()  # one operator at a time
    before = workspace_settings(tx, organization_id)
    after = before | wanted
    own = WorkspaceSettings.organization_id == organization_id
    before_why = tx.execute(select(WorkspaceSettings.why).where(own)).scalar_one_or_none()
    tx.execute(delete(WorkspaceSettings).where(own))
    tx.execute(insert(WorkspaceSettings).values(organization_id=organization_id, **after, who=who, why=why))
    switched_on = after["auto_join"] and not before["auto_join"]
    if switched_on and mirror.auto_join == AutoJoinMode.PROVISION and mirror.auto_join_existing:
        request_search_where(tx, (Cause.OPERATOR, who), auto_join_domains.c.organization_id == organization_id)
    old, new = before | {"why": before_why}, after | {"why": why}
    if old != new:
        ids = organization_id, organization_id
        note_changes(tx, [ChangeRow(tables.WORKSPACE_SETTINGS, *ids, old, new, Cause.OPERATOR, who)])
    return after


def workspace_settings(tx: Connection, organization_id: str) -> JsonObject:
    """Return a workspace's settings: `auto_join` (whether people join by domain) and `default_role` (a local role)."""
    own = select(WorkspaceSettings.auto_join, WorkspaceSettings.default_role)
    row = tx.execute(own.where(WorkspaceSettings.organization_id == organization_id)).one_or_none()
    auto_join, default_role = row or (None, None)
    return {"auto_join": auto_join is not False, "default_role": default_role or "member"}


@transactional
def unblock(tx: Connection, organization_id: str, person: str, actor: audit.Actor) -> list[str]:
    """Let a person who was removed, deactivated, invited or blocked join by domain again.

    `person` is a user id, an e-mail address in any spelling, or the id of an invitation. The address may belong to no
    user yet. Blocks of other users with the same address are removed too. In mode `provision` the person is made a
    member if their address still qualifies. A later removal, or revocation of an invitation, blocks them again.

    Returns the sorted reasons for the block, as in the view `auto_join_blocks`. Raises `OperatorError` if nothing
    blocks the person, `UnknownIdError` if the mirror has no such workspace or person, and `ConfigurationError` if
    `actor` gives no reason.
    """
    who, why = actor.who, actor.reason
    provisions = tx.execute(select(MirrorState.auto_join).with_for_update()).scalar_one() == AutoJoinMode.PROVISION
    invited = select(InvitedAddress.email_hash).where(InvitedAddress.invitation_id == person)
    hashes = [address.hash] if (address := normalize_address(person)) else list(tx.execute(invited).scalars())
    holder = select(func.min(UserAddress.user_id)).where(UserAddress.email_hash.in_(hashes))
    user_id: str | None = tx.execute(holder).scalar_one() if hashes else person
    view = auto_join_blocks.c
    blocked = view.email_hash.in_(hashes) if user_id is None else view.user_id == user_id
    blocks = select(view.reason).where(view.organization_id == organization_id, blocked)
    reasons = sorted(set(tx.execute(blocks).scalars()))
    if not reasons:
        _require(tx, Organization, "workspace", organization_id)
        if user_id is not None:
            _require(tx, User, "person", user_id)
        raise OperatorError(f"nothing blocks {user_id or 'this address'} from joining {organization_id} by domain")
    people = set() if user_id is None else same_person(tx, user_id)
    to_address = select(InvitedAddress.invitation_id).where(InvitedAddress.email_hash.in_(hashes))
    sent = Invitation.id.in_(to_address if user_id is None else sent_to(tx, people))
    invitations = select(Invitation.id, Invitation.status).where(Invitation.organization_id == organization_id, sent)
    found = tx.execute(invitations.order_by(Invitation.id)).all()
    subjects = [(INVITATION, id) for id, _ in found] if user_id is None else [(USER, user_id)]
    for kind, id in subjects:
        audit.note(tx, actor, Action.UNBLOCK, kind=kind.name, object_id=id, organization_id=organization_id)
    statuses = [{"invitation_id": id, "status": status or "", "who": who, "why": why} for id, status in found]
    insert_new(tx, UnblockedInvitation, statuses)
    inactive = or_(Membership.deleted_by.is_not(None), Membership.status.is_(None), Membership.status != "active")
    blocking = (Membership.organization_id == organization_id, Membership.user_id.in_(people), inactive)
    unblocked = [
        {"membership_id": id, "who": who, "why": why}
        for id in tx.execute(select(Membership.id).where(*blocking)).scalars()
    ]
    insert_new(tx, UnblockedMembership, unblocked)
    joins = or_(Join.user_id == user_id, and_(Join.user_id.in_(people), Join.state.in_(BLOCKING)))
    tx.execute(delete(Join).where(Join.organization_id == organization_id, joins))
    if provisions and user_id is not None:
        add_joins(tx, User.id == user_id, (Cause.OPERATOR, who))
    for _, id in subjects:
        _note_decision(tx, organization_id, id, {"state": "unblocked", "reasons": reasons, "why": why}, who)
    return reasons


@transactional
def block(tx: Connection, organization_id: str, user_id: str, actor: audit.Actor) -> None:
    """Keep a person from joining a workspace by domain until they are unblocked. An existing membership stays.

    Raises `UnknownIdError` if the mirror has no such workspace or person, and `ConfigurationError` if `actor` gives no
    reason.
    """
    _require(tx, Organization, "workspace", organization_id)
    _require(tx, User, "person", user_id)
    audit.note(tx, actor, Action.BLOCK, kind=USER.name, object_id=user_id, organization_id=organization_id)
    who, why = actor.who, actor.reason
    reason = f"by {who}: {why}"
    cause = {"cause": Cause.OPERATOR, "cause_id": who}
    values = {"state": JoinState.BLOCKED, "reason": reason, "settled_at": db_now(), **cause}
    row = dialect_insert(tx, Join).values(organization_id=organization_id, user_id=user_id, **values)
    tx.execute(row.on_conflict_do_update(index_elements=[Join.organization_id, Join.user_id], set_=values))
    _note_decision(tx, organization_id, user_id, {"state": "blocked", "reasons": [reason], "why": why}, who)


def _note_decision(tx: Connection, organization_id: str, id: str, after: JsonObject, who: str) -> None:
    """Record an operator's decision about a person or an invitation in a workspace.

    `before` is the previous decision about the same.
    """
    advisory_lock(tx, CHANGES_LOCK)  # before the previous decision is read
    same = (Change.kind == tables.JOIN, Change.object_id == id, Change.organization_id == organization_id)
    last = select(Change.after).where(*same).order_by(Change.id.desc()).limit(1)
    before = tx.execute(last).scalar_one_or_none()
    if before != after:
        note_changes(tx, [ChangeRow(tables.JOIN, id, organization_id, before, after, Cause.OPERATOR, who)])


def _require(tx: Connection, table: type[Organization | User], what: str, id: str) -> None:
    if tx.execute(select(table.id).where(table.id == id)).one_or_none() is None:
        raise UnknownIdError(f"the mirror has no {what} {id}")


def missing_members(engine: Engine, limit: int, organization_id: str | None = None) -> list[Record]:
    """Return people who should have joined a workspace by domain: nothing keeps them out, and they are not members."""
    query = eligible_members()
    found = query.selected_columns
    if organization_id is not None:
        query = query.where(found.organization_id == organization_id)
    return read_rows(engine, query.order_by(found.domain, found.user_id).limit(limit))


def eligible_members() -> Select[str, str, str | None, str, str | None]:
    """Return the query of `missing_members`.

    The views take long for each person, so it first finds the few of `outside_members`.
    """
    people = outside_members()
    outside = people.order_by(people.selected_columns.domain, people.selected_columns.user_id).subquery().c
    joins, block = auto_join_domains.c, auto_join_blocks.c
    of_domain = (joins.domain == outside.domain, joins.organization_id == outside.organization_id)
    default_role = select(joins.default_role).where(*of_domain).scalar_subquery()
    of_person = (block.organization_id == outside.organization_id, block.user_id == outside.user_id)
    kept_out = exists(select(block.reason).where(*of_person).offset(0))  # by person, not for all at once
    columns = (outside.organization_id, outside.user_id, outside.email, outside.domain)
    return select(*columns, default_role.label("default_role")).where(default_role.is_not(None), ~kept_out)


def outside_members() -> Select[str | None, str, str | None, str | None]:
    """Return the query of people with a verified address of a workspace's domain who are not its members.

    Some of them may not join: the domain may not auto-join, or something may keep the person out.
    """
    same = (Membership.organization_id == Domain.organization_id, Membership.user_id == User.id)
    member = exists().where(*same, Membership.deleted_by.is_(None), Membership.status == "active")
    other = aliased(Domain)  # a workspace may have a domain twice. Not DISTINCT, for which SQLite sorts all rows
    twice = exists().where(
        other.normalized == Domain.normalized,
        other.organization_id == Domain.organization_id,
        other.id < Domain.id,
        other.deleted_by.is_(None),
    )
    person = (User.email_domain.label("domain"), User.id.label("user_id"), User.email)
    return (
        select(*person, Domain.organization_id)
        .join(Domain, (Domain.normalized == no_lookup(User.email_domain)) & Domain.deleted_by.is_(None))
        .where(User.deleted_by.is_(None), User.email_verified.is_(True), ~member, ~twice)
    )


def without_admin(engine: Engine, limit: int) -> list[Record]:
    """Return at most `limit` workspaces that have members but no admin, sorted by id."""
    return read_rows(engine, lacking_admin().order_by(workspaces.c.organization_id).limit(limit))


def lacking_admin() -> Select[str, str | None, int]:
    """Return the query of `without_admin`."""
    workspace, member = workspaces.c, workspace_members.c
    members = select(member.user_id).where(member.organization_id == workspace.organization_id)
    # One workspace after the other, until there are enough.
    has_members, has_admin = exists(members.offset(0)), exists(members.where(member.role == "admin").offset(0))
    number = members.with_only_columns(func.count()).scalar_subquery().label("members")
    columns = (workspace.organization_id, workspace.name.label("workspace_name"), number)
    return select(*columns).where(workspace.state == "active", has_members, ~has_admin)


def joins(
    engine: Engine, *, state: str | None = None, organization_id: str | None = None, limit: int = 50
) -> list[Record]:
    """Return the joins that match all given filters, newest first, with the person's e-mail address."""
    query = select(Join.__table__, User.email).outerjoin(User, User.id == Join.user_id)
    for column, value in ((Join.state, state), (Join.organization_id, organization_id)):
        if value is not None:
            query = query.where(column == value)
    return read_rows(engine, query.order_by(Join.created_at.desc(), Join.organization_id, Join.user_id).limit(limit))


def refresh_counts(engine: Engine) -> None:
    """Store the numbers of missing members and of workspaces without an admin.

    The queries are too slow to run at every scrape of the metrics.
    """
    with read_transaction(engine) as tx:
        missing_joins, without = (
            tx.execute(select(func.count()).select_from(query.subquery())).scalar_one()
            for query in (eligible_members(), lacking_admin())
        )
    in_transaction(engine, _store_counts, missing_joins, without)


def _store_counts(tx: Connection, missing_joins: int, without_admin: int) -> None:
    tx.execute(update(MirrorState).values(missing_joins=missing_joins, without_admin=without_admin))
    counted = dialect_insert(tx, tables.Tick).values(name=COUNTS_TICK, at=db_now())
    tx.execute(counted.on_conflict_do_update(index_elements=[tables.Tick.name], set_={"at": db_now()}))
