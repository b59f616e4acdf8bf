"""Auto-join: derives, in the transaction that changes the mirror, what the changes mean for auto-join.

The views decide: `auto_join_domains` by which domain people join where, `auto_join_blocks` who is kept out (their SQL:
`models.views`). A domain's state is derived from its own row, its workspace and its rivals. It repeats the rule of
`auto_join_domains`, because it also says why a domain does not auto-join, and each change of it leaves a row in
`changes`; tests/use_cases/test_access_rules.py holds both to the same answer. In mode `provision` the same changes say
who is to be made a member; `worker.provisioning` does it, in no transaction.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, RowMapping, Select, and_, delete, exists, insert, or_, select
from sqlalchemy.orm import InstrumentedAttribute

from models.bulk import dialect_insert, insert_rows, is_any_of
from models.tables import AutoJoin, AutoJoinMode, AutoJoinState, Cause, Join, JoinSearch, JoinState, Mirror
from models.types import JsonObject, db_now
from models.views import auto_join_blocks, auto_join_domains, workspace_members
from worker.decision.decide import shown
from worker.kinds.domain import DOMAIN, Domain
from worker.kinds.organization import ORGANIZATION, Organization
from worker.kinds.user import USER, User
from worker.mirror.change_rows import CausedBy, ChangeRow

REVIVED = (JoinState.DROPPED, JoinState.FAILED)
"""Joins that a new cause makes pending again; what is blocked stays so until an operator unblocks the person."""

VERIFIED = ("verified", "legacy_verified")


@dataclass(frozen=True, slots=True)
class Claim:
    """A workspace's claim to a domain: everything that its auto-join state depends on."""

    domain_id: str
    domain: str | None
    organization_id: str | None
    verification: str | None
    reason: str | None
    deleted: bool
    workspace_deleted: bool
    workspace_known: bool
    shown: JsonObject
    """The domain as `changes` contains it."""

    @property
    def holds(self) -> bool:
        """Whether it is verified, by a workspace that is not known to be gone: one that is not known yet is a rival."""
        return self.verification in VERIFIED and not self.deleted and not self.workspace_deleted


class JoinSettings(NamedTuple):
    """What of the row of `mirror` decides who joins: see `models.tables.Mirror`."""

    auto_join: AutoJoinMode
    auto_join_existing: bool
    backfill_from: datetime | None
    backfilled_at: datetime | None

    @classmethod
    def read(cls, tx: Connection) -> "JoinSettings":
        """Return what is in force now."""
        return cls(*tx.execute(select(*(Mirror.__table__.c[name] for name in cls._fields))).one())


class AutoJoinStatus(NamedTuple):
    """A domain's auto-join state, and the reason if there is one."""

    state: AutoJoinState
    reason: str | None


def auto_join_status(claim: Claim, rivals: Iterable[str]) -> AutoJoinStatus:
    """Return where a domain stands.

    Args:
        claim: the domain.
        rivals: the ids of the other workspaces that hold it verified.
    """
    deleted = "domain" if claim.deleted else "workspace" if claim.workspace_deleted else None
    if deleted:
        return AutoJoinStatus(AutoJoinState.REVOKED, f"the {deleted} is deleted")
    if claim.verification == "failed":
        return AutoJoinStatus(AutoJoinState.FAILED, claim.reason)
    if not claim.holds:
        return AutoJoinStatus(AutoJoinState.PENDING, f"not verified: {claim.verification or 'WorkOS sent no state'}")
    if not claim.workspace_known:
        return AutoJoinStatus(AutoJoinState.PENDING, "the workspace is not in the mirror yet")
    if others := sorted(rivals):
        return AutoJoinStatus(AutoJoinState.CONFLICTED, f"also verified by {', '.join(others)}")
    return AutoJoinStatus(AutoJoinState.VERIFIED, None)


def auto_join_statuses(claims: Sequence[Claim]) -> dict[str, AutoJoinStatus]:
    """Return the standing of each of `claims`, by domain id; every claim to the same domain must be among them."""
    holders: dict[str | None, set[str]] = {}
    for claim in claims:
        if claim.domain and claim.organization_id and claim.holds:
            holders.setdefault(claim.domain, set()).add(claim.organization_id)
    return {
        claim.domain_id: auto_join_status(claim, holders.get(claim.domain, set()) - {claim.organization_id or ""})
        for claim in claims
    }


def auto_join_changes(tx: Connection, changes: Sequence[ChangeRow]) -> list[ChangeRow]:
    """Record what changes of the mirror mean for auto-join.

    A change of a domain gets the auto-join state in its `before` and `after`. A domain whose state changed for another
    reason (its workspace or a rival) gets a row of its own. The caller holds the lock of `changes`, so that of two
    transactions that verify the same domain, the second sees the first.

    Returns:
        additional rows for `changes`.
    """
    domains = {row["object_id"]: row for row in changes if row["kind"] == DOMAIN.name}
    workspaces = {
        row["object_id"]: row for row in changes if row["kind"] == ORGANIZATION.name and _created_or_deleted(row)
    }
    people = {row["object_id"]: row for row in changes if row["kind"] == USER.name and _newly_verified(row)}
    if not (domains or workspaces or people):
        return []
    mirror = JoinSettings.read(tx)
    further: list[ChangeRow] = []
    if domains or workspaces:
        transitions = _record_statuses(tx, _causes_of_claims(tx, domains, workspaces))
        further = _record_changes(transitions, changes)
        if mirror.auto_join == AutoJoinMode.PROVISION:
            _search(tx, [transition for transition in transitions if transition.begins], mirror)
    if mirror.auto_join == AutoJoinMode.PROVISION:
        _add_joins(tx, {id: _cause(row) for id, row in people.items() if _is_sign_up(row, mirror)})
    return further


def search(tx: Connection, organization_id: str, cause: CausedBy) -> None:
    """Request a search for all people with an address on one of a workspace's auto-join domains."""
    view = auto_join_domains.c
    for domain in tx.execute(select(view.domain).where(view.organization_id == organization_id)).scalars():
        _add_search(tx, organization_id, domain, None, cause)


def eligible() -> Select[str, str, str | None, str, str]:
    """Return the query of people with a verified address on an auto-join domain, members and blocked people too.

    Its columns are `organization_id`, `user_id`, `email`, `domain` and `default_role`.
    """
    view = auto_join_domains.c
    return (
        select(view.organization_id, User.id.label("user_id"), User.email, view.domain, view.default_role)
        .join(User, User.email_domain == view.domain)
        .where(User.deleted_by.is_(None), User.email_verified.is_(True))
    )


def is_missing(organization_id: ColumnElement[str] | InstrumentedAttribute[str]) -> ColumnElement[bool]:
    """Return the condition that a user is not in a workspace, and that nothing keeps them out of it."""
    member, block = workspace_members.c, auto_join_blocks.c
    inside = exists().where(member.organization_id == organization_id, member.user_id == User.id)
    kept_out = exists().where(block.organization_id == organization_id, block.user_id == User.id)
    return ~inside & ~kept_out


def add_joins(tx: Connection, which: ColumnElement[bool], cause: CausedBy) -> int:
    """Make the join of every user whom `which` names, of a verified address on an auto-join domain; return how many."""
    rows = [
        {
            "organization_id": found.organization_id,
            "user_id": found.user_id,
            "domain": found.domain,
            "cause": cause[0],
            "cause_id": cause[1],
        }
        for found in tx.execute(eligible().where(which))
    ]
    if rows:
        statement = dialect_insert(tx, Join)
        new = statement.excluded
        pending_again = {
            "state": JoinState.PENDING,
            "domain": new.domain,
            "reason": None,
            "error": None,
            "cause": new.cause,
            "cause_id": new.cause_id,
            "due_at": db_now(),
            "settled_at": None,
            "complete_from": None,
            "attempts": 0,
            "attempted_at": None,
        }
        key = [Join.organization_id, Join.user_id]
        revived = or_(*(Join.state == state for state in REVIVED))  # IN cannot be used with many rows
        tx.execute(statement.on_conflict_do_update(index_elements=key, set_=pending_again, where=revived), rows)
    return len(rows)


def _created_or_deleted(row: ChangeRow) -> bool:
    """Return whether a change created, deleted or restored a workspace."""
    return row["before"] is None or row["before"]["state"] != row["after"]["state"]


def _newly_verified(row: ChangeRow) -> bool:
    """Return whether a change gave a person a verified address that they did not have before."""
    before, after = row["before"] or {}, row["after"]
    compared = ("state", "email", "email_verified")
    return bool(
        after["state"] == "active"
        and after["email_verified"]
        and [before.get(name) for name in compared] != [after[name] for name in compared]
    )


def _is_sign_up(row: ChangeRow, mirror: JoinSettings) -> bool:
    """Return whether a change may be a sign-up. People found by the first resync signed up earlier."""
    return bool(row["cause"] == Cause.EVENT or mirror.backfilled_at is not None)


def _cause(row: ChangeRow) -> CausedBy:
    return row["cause"], row["cause_id"]


def _causes_of_claims(
    tx: Connection, domains: Mapping[str, ChangeRow], workspaces: Mapping[str, ChangeRow]
) -> dict[str, CausedBy]:
    """Return the ids of all domains whose state may have changed, each with the cause."""
    names = {
        shown["normalized"]: _cause(row)
        for row in domains.values()
        for shown in (row["before"], row["after"])
        if shown and shown["normalized"]
    }
    causes = {id: _cause(row) for id, row in domains.items()}
    owned = select(Domain.id, Domain.normalized, Domain.organization_id).where(
        is_any_of(tx, Domain.organization_id, workspaces)
    )
    for id, name, owner in tx.execute(owned):
        cause = _cause(workspaces[str(owner)])
        causes.setdefault(id, cause)
        if name:
            names.setdefault(name, cause)
    for id, name in tx.execute(select(Domain.id, Domain.normalized).where(is_any_of(tx, Domain.normalized, names))):
        causes.setdefault(id, names[name])
    return causes


def claims(tx: Connection, ids: Iterable[str]) -> list[Claim]:
    """Return the claims with these domain ids, and all other claims to the same domains, sorted by domain id."""
    selected = list(ids)
    normalized = tx.execute(select(Domain.normalized).where(is_any_of(tx, Domain.id, selected))).scalars().all()
    names = {name for name in normalized if name is not None}
    found = (
        select(
            Domain.__table__,
            Organization.deleted_by.label("workspace_deleted_by"),
            Organization.revision.label("workspace_revision"),
        )
        .outerjoin(Organization, Organization.id == Domain.organization_id)
        .where(or_(is_any_of(tx, Domain.id, selected), is_any_of(tx, Domain.normalized, names)), Domain.revision > 0)
        .order_by(Domain.id)
    )
    return [_claim(row) for row in tx.execute(found).mappings().all()]


def _claim(row: RowMapping) -> Claim:
    deleted = row["deleted_by"] is not None
    return Claim(
        row["id"],
        row["normalized"],
        row["organization_id"],
        row["verification"],
        row["reason"],
        deleted=deleted,
        workspace_deleted=row["workspace_deleted_by"] is not None,
        workspace_known=row["workspace_revision"] is not None,
        shown=shown({name: row[name] for name in DOMAIN.columns}, deleted=deleted),
    )


class Transition(NamedTuple):
    """A claim with its last recorded status, its status now, and what may have changed it."""

    claim: Claim
    before: AutoJoinStatus | None
    now: AutoJoinStatus
    cause: CausedBy

    @property
    def begins(self) -> bool:
        """Whether the domain has just become verified."""
        before = self.before.state if self.before else None
        return self.now.state is AutoJoinState.VERIFIED and before is not AutoJoinState.VERIFIED


def _record_statuses(tx: Connection, causes: Mapping[str, CausedBy]) -> list[Transition]:
    """Work out where domains stand, and every other claim to them, and note what changed."""
    if not causes:
        return []
    found = claims(tx, causes)
    now = auto_join_statuses(found)
    query = select(AutoJoin.__table__).where(is_any_of(tx, AutoJoin.domain_id, now))
    recorded = {row.domain_id: row for row in tx.execute(query).all()}
    any_cause = next(iter(causes.values()))
    transitions = []
    outdated: list[dict[str, str | None]] = []
    for claim in found:
        row, status = recorded.get(claim.domain_id), now[claim.domain_id]
        before = AutoJoinStatus(AutoJoinState(row.state), row.reason) if row else None
        transitions.append(Transition(claim, before, status, causes.get(claim.domain_id, any_cause)))
        if before != status or row is None or row.domain != claim.domain:
            place = {"domain": claim.domain, "organization_id": claim.organization_id}
            outdated.append({"domain_id": claim.domain_id, **place, **status._asdict()})
    if outdated:
        tx.execute(
            delete(AutoJoin).where(is_any_of(tx, AutoJoin.domain_id, (str(row["domain_id"]) for row in outdated)))
        )
        insert_rows(tx, AutoJoin, outdated)
    return transitions


def _record_changes(transitions: Sequence[Transition], changes: Sequence[ChangeRow]) -> list[ChangeRow]:
    """Add the states to the changes of their domains; return a row for each state that changed without one."""
    rows: dict[str, list[ChangeRow]] = {}
    for change in changes:
        if change["kind"] == DOMAIN.name:
            rows.setdefault(change["object_id"], []).append(change)
    further: list[ChangeRow] = []
    for transition in transitions:
        claim = transition.claim
        before, now = _columns(transition.before), _columns(transition.now)
        own = rows.get(claim.domain_id, [])
        for change in own:
            if change["before"] is not None:
                change["before"].update(before)
            change["after"].update(now if change is own[-1] else before)
        if not own and transition.before != transition.now:
            further.append(
                {
                    "kind": DOMAIN.name,
                    "object_id": claim.domain_id,
                    "organization_id": claim.organization_id,
                    "before": {**claim.shown, **before},
                    "after": {**claim.shown, **now},
                    "cause": transition.cause[0],
                    "cause_id": transition.cause[1],
                }
            )
    return further


def _columns(status: AutoJoinStatus | None) -> dict[str, str | None]:
    return {
        "auto_join": status.state.value if status else None,
        "auto_join_reason": status.reason if status else None,
    }


def _search(tx: Connection, verified: Sequence[Transition], mirror: JoinSettings) -> None:
    """Request searches for the people of domains that have begun to auto-join.

    Without AUTO_JOIN_EXISTING a search covers only people who signed up after the domain was verified.
    """
    ids = [transition.claim.domain_id for transition in verified]
    times = {
        row.id: row.updated_at
        for row in tx.execute(select(Domain.id, Domain.updated_at).where(is_any_of(tx, Domain.id, ids)))
    }
    for transition in verified:
        claim = transition.claim
        if claim.domain is None or claim.organization_id is None:
            continue
        everybody = mirror.auto_join_existing and mirror.backfilled_at is not None
        # The event of a sign-up may arrive before the event that verified the domain.
        after = None if everybody else max(filter(None, (times[claim.domain_id], mirror.backfill_from)))
        _add_search(tx, claim.organization_id, claim.domain, after, transition.cause)


def _add_search(
    tx: Connection, organization_id: str, domain: str, created_after: datetime | None, cause: CausedBy
) -> None:
    same = and_(JoinSearch.organization_id == organization_id, JoinSearch.domain == domain)
    running = tx.execute(delete(JoinSearch).where(same).returning(JoinSearch.created_after)).one_or_none()
    row = {"organization_id": organization_id, "domain": domain, "cause": cause[0], "cause_id": cause[1]}
    everybody = running is not None and running.created_after is None
    tx.execute(insert(JoinSearch).values(created_after=None if everybody else created_after, **row))


def _add_joins(tx: Connection, people: Mapping[str, CausedBy]) -> None:
    by_cause: dict[CausedBy, list[str]] = {}
    for id, cause in people.items():
        by_cause.setdefault(cause, []).append(id)
    for cause, ids in by_cause.items():
        add_joins(tx, is_any_of(tx, User.id, ids), cause)
