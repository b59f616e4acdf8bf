"""The effect of settings if a worker started with them: changed roles, and people who would join, by domain."""

from sqlalchemy import Connection, Engine, exists, select

from models.database import read_transaction
from models.rows import all_rows
from models.tables import AutoJoinMode, MirrorState
from models.types import Record
from models.views import auto_join_domains, domains_that_can_auto_join
from worker.kinds.domain import VERIFIED, Domain
from worker.kinds.user import User
from worker.mirror import role_map
from worker.mirror.auto_join import eligible, neither_member_nor_blocked
from worker.mirror.auto_join_policy import searches_for_people
from worker.settings import Settings


def plan(engine: Engine, settings: Settings) -> Record:
    """Return what a worker that starts with these settings would change, compared with what is in force now.

    The keys are `digest` (names the role map in an approval), `members` (how many people have access, in all
    workspaces), `promotions` and `demotions` (how many would become admin, or member), `roles` (those people), `joins`
    (people who would be added by domain at once) and `domains` (those that would start or stop auto-joining).
    """
    with read_transaction(engine) as tx:
        roles = [found._asdict() for found in role_map.role_changes(tx, settings.role_map)]
        return {
            "digest": role_map.digest_of(settings.role_map),
            "members": role_map.count_members(tx),
            "promotions": sum(row["after"] == role_map.ADMIN for row in roles),
            "demotions": sum(row["after"] == role_map.MEMBER for row in roles),
            "roles": roles,
            "joins": _joins(tx, settings),
            "domains": _domains(tx, settings.auto_join),
        }


def _domains(tx: Connection, mode: AutoJoinMode) -> list[Record]:
    current = tx.execute(select(MirrorState.auto_join)).scalar_one()
    if (current == AutoJoinMode.OFF) == (mode == AutoJoinMode.OFF):
        return []
    starts = current == AutoJoinMode.OFF
    view = (domains_that_can_auto_join() if starts else auto_join_domains).c
    found = select(view.domain, view.organization_id, view.default_role).order_by(view.domain, view.organization_id)
    return [row | {"auto_join": "starts" if starts else "stops"} for row in all_rows(tx, found)]


def _joins(tx: Connection, settings: Settings) -> list[Record]:
    """Return the people who would be added to workspaces: those that `auto_join_policy.adopt` would search for."""
    now = tx.execute(select(MirrorState.__table__)).one()
    unchanged = (now.auto_join, now.auto_join_existing) == (settings.auto_join, settings.auto_join_existing)
    existing = settings.auto_join_existing
    if unchanged or not searches_for_people(now.auto_join, settings.auto_join, existing=existing):
        return []
    view = domains_that_can_auto_join()
    found = eligible(view).where(neither_member_nor_blocked(view.c.organization_id))
    if not (existing and now.backfilled_at is not None):
        claim = (Domain.organization_id == view.c.organization_id, Domain.normalized == view.c.domain)
        verified = (Domain.deleted_by.is_(None), Domain.verification.in_(VERIFIED))
        before = exists().where(*claim, *verified, Domain.updated_at <= User.created_at)
        found = found.where(before)
        if now.backfill_from is not None:
            found = found.where(User.created_at >= now.backfill_from)
    rows = all_rows(tx, found.order_by(view.c.organization_id, User.id))
    return [{name: row[name] for name in ("organization_id", "user_id", "domain", "default_role")} for row in rows]
