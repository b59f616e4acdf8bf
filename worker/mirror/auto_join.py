"""Auto-join: what changes of the mirror mean for it, worked out in the transaction that makes them.

The views decide: `auto_join_domains` by which domain people join where, `auto_join_blocks` who is kept out (their SQL:
`models.views`). A domain's state is derived from its own row, its workspace and its rivals. It repeats the rule of
`auto_join_domains`, because it also says why a domain does not auto-join, and each change of it leaves a row in
`changes`; tests/use_cases/test_access_rules.py holds both to the same answer. In mode `provision` the same changes say
who is to be made a member; `worker.provisioning` does it, in no transaction.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, RowMapping, Select, and_, delete, exists, insert, or_, select

from models.bulk import dialect_insert, insert_rows, is_any_of
from models.tables import (
    CONTENT,
    AutoJoin,
    AutoJoinState,
    Domain,
    Join,
    JoinSearch,
    JoinState,
    Kind,
    Mirror,
    Organization,
    User,
)
from models.types import db_now
from models.views import auto_join_blocks, auto_join_domains, workspace_members
from worker.decision.decide import shown

REVIVED = (JoinState.DROPPED, JoinState.FAILED)
"""Joins that a new cause makes pending again; what is blocked stays so until an operator unblocks the person."""

VERIFIED = ("verified", "legacy_verified")

Cause = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Claim:
    """A domain as a workspace claims it: what its state depends on."""

    domain_id: str
    domain: str | None
    organization_id: str | None
    verification: str | None
    reason: str | None
    deleted: bool
    workspace_deleted: bool
    workspace_known: bool
    shown: Mapping[str, Any]
    """The domain as `changes` shows it."""

    @property
    def holds(self) -> bool:
        """Whether it is verified, by a workspace that is not known to be gone: one that is not known yet is a rival."""
        return self.verification in VERIFIED and not self.deleted and not self.workspace_deleted


class AutoJoinStatus(NamedTuple):
    """A domain's auto-join state and, where there is one, its reason."""

    state: AutoJoinState
    reason: str | None


def auto_join_status(claim: Claim, rivals: Iterable[str]) -> AutoJoinStatus:
    """Return where a domain stands.

    Args:
        claim: the domain.
        rivals: the ids of the other workspaces that hold it verified.
    """
    gone = "domain" if claim.deleted else "workspace" if claim.workspace_deleted else None
    if gone:
        return AutoJoinStatus(AutoJoinState.REVOKED, f"the {gone} is deleted")
    if claim.verification == "failed":
        return AutoJoinStatus(AutoJoinState.FAILED, claim.reason)
    if not claim.holds:
        return AutoJoinStatus(AutoJoinState.PENDING, f"not verified: {claim.verification or 'WorkOS says no state'}")
    if not claim.workspace_known:
        return AutoJoinStatus(AutoJoinState.PENDING, "the workspace is not known here yet")
    if others := sorted(rivals):
        return AutoJoinStatus(AutoJoinState.CONFLICTED, f"verified by {', '.join(others)} too")
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


def auto_join_changes(tx: Connection, changes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Note what changes of the mirror mean for auto-join.

    A change of a domain gets the state it led to, in its `before` and `after`; a domain whose state changed for another
    reason (a rival, its workspace) gets a row of its own. The caller holds the lock of `changes`, so that of two who
    verify one domain the second sees the first.

    Returns:
        the further rows that `changes` gets.
    """
    domains = {row["object_id"]: row for row in changes if row["kind"] == Kind.DOMAIN}
    workspaces = {
        row["object_id"]: row for row in changes if row["kind"] == Kind.ORGANIZATION and _created_or_deleted(row)
    }
    people = {row["object_id"]: row for row in changes if row["kind"] == Kind.USER and _newly_verified(row)}
    if not (domains or workspaces or people):
        return []
    mirror = tx.execute(select(Mirror.__table__)).one()
    told: list[dict[str, Any]] = []
    if domains or workspaces:
        turns = _record_statuses(tx, _causes_of_claims(tx, domains, workspaces))
        told = _record_changes(turns, changes)
        if mirror.auto_join == "provision":
            _search(tx, [turn for turn in turns if turn.begins], mirror)
    if mirror.auto_join == "provision":
        _add_joins(tx, {id: _cause(row) for id, row in people.items() if _counts(row, mirror)})
    return told


def search(tx: Connection, organization_id: str, cause: Cause) -> None:
    """Have everybody looked for who is on a workspace's auto-join domains."""
    view = auto_join_domains.c
    for domain in tx.execute(select(view.domain).where(view.organization_id == organization_id)).scalars():
        _add_search(tx, organization_id, domain, None, cause)


def eligible() -> Select[Any]:
    """Return the query of people with a verified address on an auto-join domain, members and blocked people too.

    Its columns are `organization_id`, `user_id`, `email`, `domain` and `default_role`.
    """
    view = auto_join_domains.c
    return (
        select(view.organization_id, User.id.label("user_id"), User.email, view.domain, view.default_role)
        .join(User, User.email_domain == view.domain)
        .where(User.deleted_by.is_(None), User.email_verified.is_(True))
    )


def is_missing(organization_id: Any) -> ColumnElement[bool]:
    """Return the condition that a user is not in a workspace, and that nothing keeps them out of it."""
    member, block = workspace_members.c, auto_join_blocks.c
    inside = exists().where(member.organization_id == organization_id, member.user_id == User.id)
    kept_out = exists().where(block.organization_id == organization_id, block.user_id == User.id)
    return ~inside & ~kept_out


def add_joins(tx: Connection, which: ColumnElement[bool], cause: Cause) -> int:
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
        given = statement.excluded
        again = {
            "state": JoinState.PENDING,
            "domain": given.domain,
            "reason": None,
            "error": None,
            "cause": given.cause,
            "cause_id": given.cause_id,
            "due_at": db_now(),
            "settled_at": None,
            "complete_from": None,
            "attempts": 0,
            "attempted_at": None,
        }
        key = [Join.organization_id, Join.user_id]
        revived = or_(*(Join.state == state for state in REVIVED))  # IN does not go with many rows at once
        tx.execute(statement.on_conflict_do_update(index_elements=key, set_=again, where=revived), rows)
    return len(rows)


def _created_or_deleted(row: Mapping[str, Any]) -> bool:
    """Whether a workspace came or went."""
    return row["before"] is None or row["before"]["state"] != row["after"]["state"]


def _newly_verified(row: Mapping[str, Any]) -> bool:
    """Whether a person now has a verified address that was not, or was another, before."""
    before, after = row["before"] or {}, row["after"]
    told = ("state", "email", "email_verified")
    return bool(
        after["state"] == "active"
        and after["email_verified"]
        and [before.get(name) for name in told] != [after[name] for name in told]
    )


def _counts(row: Mapping[str, Any], mirror: Any) -> bool:
    """Whether a change tells of a sign-up: an event does; what a first resync finds was there before."""
    return bool(row["cause"] == "event" or mirror.backfilled_at is not None)


def _cause(row: Mapping[str, Any]) -> Cause:
    return row["cause"], row["cause_id"]


def _causes_of_claims(
    tx: Connection, domains: Mapping[str, Mapping[str, Any]], workspaces: Mapping[str, Mapping[str, Any]]
) -> dict[str, Cause]:
    """Return the ids of all domains whose state may have changed, each with what changed it."""
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
    """Return the claims with these domain ids, and every other claim to the same domains."""
    mine = list(ids)
    named = tx.execute(select(Domain.normalized).where(is_any_of(tx, Domain.id, mine))).scalars().all()
    names = {name for name in named if name is not None}
    found = (
        select(
            Domain.__table__,
            Organization.deleted_by.label("workspace_deleted_by"),
            Organization.revision.label("workspace_revision"),
        )
        .outerjoin(Organization, Organization.id == Domain.organization_id)
        .where(or_(is_any_of(tx, Domain.id, mine), is_any_of(tx, Domain.normalized, names)), Domain.revision > 0)
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
        shown=shown({name: row[name] for name in CONTENT[Kind.DOMAIN]}, deleted=deleted),
    )


class Transition(NamedTuple):
    """A claim, where it stood when that was last noted, where it stands now, and what may have changed it."""

    claim: Claim
    before: AutoJoinStatus | None
    now: AutoJoinStatus
    cause: Cause

    @property
    def begins(self) -> bool:
        """Whether it has just become verified."""
        was = self.before.state if self.before else None
        return self.now.state is AutoJoinState.VERIFIED and was is not AutoJoinState.VERIFIED


def _record_statuses(tx: Connection, causes: Mapping[str, Cause]) -> list[Transition]:
    """Work out where domains stand, and every other claim to them, and note what changed."""
    if not causes:
        return []
    found = claims(tx, causes)
    now = auto_join_statuses(found)
    query = select(AutoJoin.__table__).where(is_any_of(tx, AutoJoin.domain_id, now))
    noted = {row.domain_id: row for row in tx.execute(query).all()}
    any_cause = next(iter(causes.values()))
    turns = []
    stale: list[dict[str, Any]] = []
    for claim in found:
        row, auto_join_status = noted.get(claim.domain_id), now[claim.domain_id]
        before = AutoJoinStatus(AutoJoinState(row.state), row.reason) if row else None
        turns.append(Transition(claim, before, auto_join_status, causes.get(claim.domain_id, any_cause)))
        if before != auto_join_status or row is None or row.domain != claim.domain:
            place = {"domain": claim.domain, "organization_id": claim.organization_id}
            stale.append({"domain_id": claim.domain_id, **place, **auto_join_status._asdict()})
    if stale:
        tx.execute(delete(AutoJoin).where(is_any_of(tx, AutoJoin.domain_id, (row["domain_id"] for row in stale))))
        insert_rows(tx, AutoJoin, stale)
    return turns


def _record_changes(turns: Sequence[Transition], changes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Write the states into the changes of their domains, and return a row for each that changed without one."""
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for change in changes:
        if change["kind"] == Kind.DOMAIN:
            rows.setdefault(change["object_id"], []).append(change)
    further = []
    for turn in turns:
        before, now = _shown(turn.before), _shown(turn.now)
        mine = rows.get(turn.claim.domain_id, [])
        for change in mine:
            if change["before"] is not None:
                change["before"].update(before)
            change["after"].update(now if change is mine[-1] else before)
        if not mine and turn.before != turn.now:
            further.append(
                {
                    "kind": Kind.DOMAIN.value,
                    "object_id": turn.claim.domain_id,
                    "organization_id": turn.claim.organization_id,
                    "before": {**turn.claim.shown, **before},
                    "after": {**turn.claim.shown, **now},
                    "cause": turn.cause[0],
                    "cause_id": turn.cause[1],
                }
            )
    return further


def _shown(auto_join_status: AutoJoinStatus | None) -> dict[str, str | None]:
    return {
        "auto_join": auto_join_status.state.value if auto_join_status else None,
        "auto_join_reason": auto_join_status.reason if auto_join_status else None,
    }


def _search(tx: Connection, verified: Sequence[Transition], mirror: Any) -> None:
    """Have the users of domains that began to auto-join looked for: of those who signed up before, only if set so."""
    ids = [turn.claim.domain_id for turn in verified]
    times = {
        row.id: row.updated_at
        for row in tx.execute(select(Domain.id, Domain.updated_at).where(is_any_of(tx, Domain.id, ids)))
    }
    for turn in verified:
        claim = turn.claim
        if claim.domain is None or claim.organization_id is None:
            continue
        everybody = mirror.auto_join_existing and mirror.backfilled_at is not None
        # An event about a sign-up may come before the one that verified the domain.
        after = None if everybody else max(filter(None, (times[claim.domain_id], mirror.backfill_from)))
        _add_search(tx, claim.organization_id, claim.domain, after, turn.cause)


def _add_search(tx: Connection, organization_id: str, domain: str, created_after: Any, cause: Cause) -> None:
    here = and_(JoinSearch.organization_id == organization_id, JoinSearch.domain == domain)
    under_way = tx.execute(delete(JoinSearch).where(here).returning(JoinSearch.created_after)).one_or_none()
    row = {"organization_id": organization_id, "domain": domain, "cause": cause[0], "cause_id": cause[1]}
    everybody = under_way is not None and under_way.created_after is None
    tx.execute(insert(JoinSearch).values(created_after=None if everybody else created_after, **row))


def _add_joins(tx: Connection, people: Mapping[str, Cause]) -> None:
    by_cause: dict[Cause, list[str]] = {}
    for id, cause in people.items():
        by_cause.setdefault(cause, []).append(id)
    for cause, ids in by_cause.items():
        add_joins(tx, is_any_of(tx, User.id, ids), cause)
