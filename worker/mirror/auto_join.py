"""Auto-join: records the effects of changes on auto-join, in the transaction that makes the changes.

The views in `models.views` decide: `auto_join_domains` by which domain people join, `auto_join_blocks` who is kept out.
To record in `changes` why a domain does not auto-join, this module repeats the part of `auto_join_domains` about
verification and rival workspaces. tests/use_cases/test_access_rules.py compares both. In mode `provision` it also
adds a row to `joins` for each person who needs a membership; `worker.provisioning` creates it.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Select,
    and_,
    delete,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
)
from sqlalchemy.orm import InstrumentedAttribute, aliased

from models.bulk import dialect_insert, insert_rows, is_any_of
from models.database import CHANGES_LOCK, advisory_lock
from models.tables import (
    AutoJoin,
    AutoJoinMode,
    AutoJoinState,
    Cause,
    Join,
    JoinSearch,
    JoinState,
    MirrorState,
    UserAddress,
)
from models.types import JsonObject, db_now
from models.views import auto_join_blocks, auto_join_domains, workspace_members
from worker.decision.decide import recorded_content
from worker.kinds.domain import DOMAIN, VERIFIED, Domain
from worker.kinds.organization import ORGANIZATION, Organization
from worker.kinds.user import USER, User
from worker.mirror.change_rows import CausedBy, ChangeRow

RETRYABLE_JOINS = (JoinState.DROPPED, JoinState.FAILED)
"""The states in which a new cause makes a join pending again. A block stays until an operator unblocks the person."""


class DomainClaim(NamedTuple):
    """A workspace's claim to a domain: everything that its auto-join state depends on."""

    id: str
    created_at: datetime
    updated_at: datetime
    organization_id: str | None
    domain: str | None
    normalized: str | None
    verification: str | None
    reason: str | None
    deleted: bool
    workspace_deleted: bool
    workspace_known: bool

    @property
    def holds(self) -> bool:
        """Whether the workspace has verified the domain, even if the workspace is not in the mirror yet."""
        return self.verification in VERIFIED and not self.deleted and not self.workspace_deleted

    def recorded(self) -> JsonObject:
        """Return the domain as `changes` contains it."""
        return recorded_content({name: getattr(self, name) for name in DOMAIN.columns}, deleted=self.deleted)


class AutoJoinStatus(NamedTuple):
    """A domain's auto-join state, and the reason if there is one."""

    state: AutoJoinState
    reason: str | None


def auto_join_statuses(claims: Sequence[DomainClaim]) -> dict[str, AutoJoinStatus]:
    """Return the status of each claim, by domain id. `claims` must include every claim to each of their domains."""
    holders: dict[str | None, set[str]] = {}
    for claim in claims:
        if claim.normalized and claim.organization_id and claim.holds:
            holders.setdefault(claim.normalized, set()).add(claim.organization_id)
    return {claim.id: _status(claim, holders.get(claim.normalized, set())) for claim in claims}


def _status(claim: DomainClaim, holders: set[str]) -> AutoJoinStatus:
    if claim.deleted or claim.workspace_deleted:
        return AutoJoinStatus(AutoJoinState.REVOKED, f"the {'domain' if claim.deleted else 'workspace'} is deleted")
    if claim.verification == "failed":
        return AutoJoinStatus(AutoJoinState.FAILED, claim.reason)
    if not claim.holds:
        return AutoJoinStatus(AutoJoinState.PENDING, f"not verified: {claim.verification or 'WorkOS sent no state'}")
    if not claim.workspace_known:
        return AutoJoinStatus(AutoJoinState.PENDING, "the workspace is not in the mirror yet")
    if rivals := sorted(holders - {claim.organization_id or ""}):
        return AutoJoinStatus(AutoJoinState.CONFLICTED, f"also verified by {', '.join(rivals)}")
    return AutoJoinStatus(AutoJoinState.VERIFIED, None)


def auto_join_changes(tx: Connection, changes: Sequence[ChangeRow]) -> list[ChangeRow]:
    """Record new auto-join states, and joins and searches in mode `provision`; return additional rows for `changes`.

    A change of a domain gets the auto-join state in its `before` and `after`. A domain whose state changed for another
    reason (its workspace or a rival) gets a row of its own. The caller holds the lock of `changes`, so that of two
    transactions that verify the same domain, the second sees the first.
    """
    domains = {row.object_id: row for row in changes if row.kind == DOMAIN.name}
    workspaces = {row.object_id: row for row in changes if row.kind == ORGANIZATION.name and _created_or_deleted(row)}
    people = {row.object_id: row for row in changes if row.kind == USER.name and _newly_verified(row)}
    if not (domains or workspaces or people):
        return []
    mode, backfilled_at = tx.execute(select(MirrorState.auto_join, MirrorState.backfilled_at)).one()
    derived: list[ChangeRow] = []
    if domains or workspaces:
        transitions = _record_statuses(tx, _causes_of_claims(tx, domains, workspaces))
        derived = _record_changes(transitions, changes)
        if mode == AutoJoinMode.PROVISION:
            _request_new_domain_searches(tx, transitions)
    if mode == AutoJoinMode.PROVISION:
        by_cause: dict[CausedBy, list[str]] = {}
        for id, row in people.items():
            # People found by the first resync signed up earlier.
            if row.cause == Cause.EVENT or backfilled_at is not None:
                by_cause.setdefault(row.caused_by, []).append(id)
        for cause, ids in by_cause.items():
            add_joins(tx, is_any_of(tx, User.id, ids), cause)
    return derived


def request_search_where(tx: Connection, cause: CausedBy, *which: ColumnElement[bool]) -> None:
    """Request a search for people who have not joined by the auto-join domains that meet `which`.

    As for a domain that has just been verified, the search covers everybody with `AUTO_JOIN_EXISTING`, and otherwise
    the people who signed up after the domain was verified.
    """
    advisory_lock(tx, CHANGES_LOCK)  # another transaction may request the same search
    view = auto_join_domains.c
    of_claim = and_(Domain.organization_id == view.organization_id, Domain.normalized == view.domain)
    verified = (Domain.deleted_by.is_(None), Domain.verification.in_(VERIFIED))
    place = (view.organization_id, view.domain)
    query = select(*place, func.min(Domain.updated_at)).join(Domain, of_claim).where(*verified, *which).group_by(*place)
    for organization_id, domain, verified_at in tx.execute(query).all():
        _insert_search(tx, organization_id, domain, verified_at, cause)


def eligible(domains: FromClause = auto_join_domains) -> Select[str, str, str | None, str, str]:
    """Return the query of people with a verified address on an auto-join domain, including members and blocked people.

    Its columns are `organization_id`, `user_id`, `email`, `domain` and `default_role`. `domains` has the columns of the
    view.
    """
    view = domains.c
    return (
        select(view.organization_id, User.id.label("user_id"), User.email, view.domain, view.default_role)
        .join(User, User.email_domain == view.domain)
        .where(User.deleted_by.is_(None), User.email_verified.is_(True))
    )


def neither_member_nor_blocked(organization_id: ColumnElement[str] | InstrumentedAttribute[str]) -> ColumnElement[bool]:
    """Return the SQL condition that a user is not a member of a workspace and not kept out of it."""
    member, block = workspace_members.c, auto_join_blocks.c
    inside = exists().where(member.organization_id == organization_id, member.user_id == User.id)
    kept_out = exists().where(block.organization_id == organization_id, block.user_id == User.id)
    return ~inside & ~kept_out


def same_person(tx: Connection, user_id: str) -> set[str]:
    """Return the user ids of one person: `user_id`, and every user that ever had an address of that user."""
    own, shared = aliased(UserAddress), aliased(UserAddress)
    others = select(shared.user_id).join(own, own.email_hash == shared.email_hash).where(own.user_id == user_id)
    return {user_id, *tx.execute(others).scalars()}


def add_joins(tx: Connection, which: ColumnElement[bool], cause: CausedBy) -> None:
    """Add a join for each user that matches `which` and has a verified address on an auto-join domain."""
    chosen = eligible().where(which).subquery().c
    given = {
        "organization_id": chosen.organization_id,
        "user_id": chosen.user_id,
        "domain": chosen.domain,
        "cause": literal(cause[0], Join.cause.type),
        "cause_id": literal(cause[1]),
    }
    statement = dialect_insert(tx, Join).from_select(list(given), select(*given.values()).where(chosen.user_id != ""))
    new = statement.excluded
    pending_again = {
        "state": JoinState.PENDING,
        **{name: new[name] for name in ("domain", "cause", "cause_id")},
        **dict.fromkeys(("reason", "error", "settled_at", "complete_from", "attempted_at")),
        "due_at": db_now(),
        "attempts": 0,
    }
    key = [Join.organization_id, Join.user_id]
    tx.execute(
        statement.on_conflict_do_update(index_elements=key, set_=pending_again, where=Join.state.in_(RETRYABLE_JOINS))
    )


def _created_or_deleted(row: ChangeRow) -> bool:
    """Return whether a change created, deleted or restored a workspace."""
    return row.before is None or row.before["state"] != row.after["state"]


def _newly_verified(row: ChangeRow) -> bool:
    """Return whether a change gave a person a verified address that they did not have before."""
    before, after = row.before or {}, row.after
    changed = any(before.get(name) != after[name] for name in ("state", "email", "email_verified"))
    return changed and after["state"] == "active" and bool(after["email_verified"])


def _causes_of_claims(
    tx: Connection, domains: Mapping[str, ChangeRow], workspaces: Mapping[str, ChangeRow]
) -> dict[str, CausedBy]:
    """Return the ids of all domains whose state may have changed, each with the cause."""
    causes = {id: row.caused_by for id, row in domains.items()}
    names = {
        content["normalized"]: row.caused_by
        for row in domains.values()
        for content in (row.before, row.after)
        if content and content["normalized"]
    }
    claimed = select(Domain.id, Domain.normalized, Domain.organization_id)
    for id, name, owner in tx.execute(claimed.where(is_any_of(tx, Domain.organization_id, workspaces))):
        cause = workspaces[str(owner)].caused_by
        causes.setdefault(id, cause)
        if name:
            names.setdefault(name, cause)
    for id, name, _ in tx.execute(claimed.where(is_any_of(tx, Domain.normalized, names))):
        causes.setdefault(id, names[str(name)])
    return causes


def domain_claims(tx: Connection, ids: Iterable[str]) -> list[DomainClaim]:
    """Return the claims with these domain ids, and all other claims to the same domains, sorted by domain id."""
    selected = is_any_of(tx, Domain.id, ids)
    names = filter(None, tx.execute(select(Domain.normalized).where(selected)).scalars())
    found = (
        select(
            *(Domain.__table__.c[name] for name in ("id", "updated_at", *DOMAIN.columns)),
            Domain.deleted_by.is_not(None).label("deleted"),
            Organization.deleted_by.is_not(None).label("workspace_deleted"),
            Organization.id.is_not(None).label("workspace_known"),
        )
        .outerjoin(Organization, Organization.id == Domain.organization_id)
        .where(or_(selected, is_any_of(tx, Domain.normalized, set(names))), Domain.revision > 0)
        .order_by(Domain.id)
    )
    return [DomainClaim(**row) for row in tx.execute(found).mappings()]


class Transition(NamedTuple):
    """A claim with its last recorded status, its status now, and what may have changed it."""

    claim: DomainClaim
    before: AutoJoinStatus | None
    now: AutoJoinStatus
    cause: CausedBy


def _record_statuses(tx: Connection, causes: Mapping[str, CausedBy]) -> list[Transition]:
    """Derive and record the status of these domains and of every other claim to them."""
    if not causes:
        return []
    found = domain_claims(tx, causes)
    now = auto_join_statuses(found)
    query = select(AutoJoin.__table__).where(is_any_of(tx, AutoJoin.domain_id, now))
    recorded = {row.domain_id: row for row in tx.execute(query)}
    any_cause = next(iter(causes.values()))
    transitions = []
    outdated: dict[str, dict[str, object]] = {}
    for claim in found:
        id = claim.id
        row, status = recorded.get(id), now[id]
        before = AutoJoinStatus(AutoJoinState(row.state), row.reason) if row else None
        transitions.append(Transition(claim, before, status, causes.get(id, any_cause)))
        if before != status or row is None or row.domain != claim.normalized:
            place = {"domain_id": id, "domain": claim.normalized, "organization_id": claim.organization_id}
            outdated[id] = {**place, **status._asdict()}
    if outdated:
        tx.execute(delete(AutoJoin).where(is_any_of(tx, AutoJoin.domain_id, outdated)))
        insert_rows(tx, AutoJoin, list(outdated.values()))
    return transitions


def _record_changes(transitions: Sequence[Transition], changes: Sequence[ChangeRow]) -> list[ChangeRow]:
    """Add the states to the changes of their domains; return a row for each domain of which only the state changed."""
    rows: dict[str, list[ChangeRow]] = {}
    for change in changes:
        if change.kind == DOMAIN.name:
            rows.setdefault(change.object_id, []).append(change)
    derived: list[ChangeRow] = []
    for claim, old, new, cause in transitions:
        before, now = _columns(old), _columns(new)
        own = rows.get(claim.id, [])
        for change in own:
            if change.before is not None:
                change.before.update(before)
            change.after.update(now if change is own[-1] else before)
        if not own and old != new:
            row = (claim.id, claim.organization_id, claim.recorded() | before, claim.recorded() | now)
            derived.append(ChangeRow(DOMAIN.name, *row, *cause))
    return derived


def _columns(status: AutoJoinStatus | None) -> dict[str, str | None]:
    state, reason = status or (None, None)
    return {"auto_join": state, "auto_join_reason": reason}


def _request_new_domain_searches(tx: Connection, transitions: Sequence[Transition]) -> None:
    """Request searches for the people of domains that have just become verified."""
    for claim, before, now, cause in transitions:
        was_verified = before is not None and before.state is AutoJoinState.VERIFIED
        if now.state is AutoJoinState.VERIFIED and not was_verified and claim.normalized and claim.organization_id:
            # The event of a sign-up may arrive before the event that verified the domain.
            _insert_search(tx, claim.organization_id, claim.normalized, claim.updated_at, cause)


def _insert_search(tx: Connection, organization_id: str, domain: str, verified_at: datetime, cause: CausedBy) -> None:
    """Request a search for everybody (`AUTO_JOIN_EXISTING`), or for the people who signed up since `verified_at`.

    People found by the first resync are left out. A search for everybody that is still open stays one for everybody.
    """
    settings = select(MirrorState.auto_join_existing, MirrorState.backfill_from, MirrorState.backfilled_at)
    existing, backfill_from, backfilled_at = tx.execute(settings).one()
    search_all = existing and backfilled_at is not None
    created_after = None if search_all else max(filter(None, (verified_at, backfill_from)))
    same = and_(JoinSearch.organization_id == organization_id, JoinSearch.domain == domain)
    running = tx.execute(delete(JoinSearch).where(same).returning(JoinSearch.created_after)).one_or_none()
    row = {"organization_id": organization_id, "domain": domain, "cause": cause[0], "cause_id": cause[1]}
    if running is not None and running.created_after is None:
        created_after = None
    tx.execute(insert(JoinSearch).values(created_after=created_after, **row))
