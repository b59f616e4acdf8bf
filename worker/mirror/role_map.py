"""The role map in force, stored in the database so that all processes use the same one.

When it changes, the memberships are mapped again. A new map that would make too many members admins is withheld until
an operator approves it; only what reduces access takes effect at once.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import structlog
from sqlalchemy import Connection, Engine, func, select, update

from models.database import in_transaction, read_transaction
from models.tables import ROLE_MAP, Action, Cause, MirrorState, Via
from models.types import JsonObject
from models.views import workspace_members
from worker import audit
from worker.decision.decide import State
from worker.decision.roles import LOCAL_ROLES, local_role
from worker.errors import OperatorError
from worker.kinds import RoleMap
from worker.kinds.membership import MEMBERSHIP, Membership
from worker.kinds.organization import ORGANIZATION
from worker.kinds.role import Role
from worker.mirror.apply import change, insert_and_lock_rows, note_changes, save_rows
from worker.mirror.change_rows import ChangeRow

log = structlog.get_logger()

SETTING = "ROLE_MAP"
BATCH = 500
"""Memberships mapped in one transaction."""
FETCH_SIZE = 1_000
MEMBER, ADMIN = LOCAL_ROLES
MAX_PROMOTIONS = 20
MAX_PROMOTED_SHARE = 0.05
"""A new map is withheld if it would promote more than `MAX_PROMOTIONS` members and more than this share of them all."""


_LOCKED = select(MirrorState.role_map).with_for_update(read=True)


class RoleChange(NamedTuple):
    """A person whose role in a workspace a new map would change."""

    organization_id: str
    user_id: str
    before: str
    after: str


def lock_role_map(tx: Connection) -> RoleMap:
    """Return the role map in force, with a shared lock: a new map waits for the transactions that use this one."""
    roles: RoleMap = tx.execute(_LOCKED).scalar_one()
    return roles


def adopt(engine: Engine, role_map: Mapping[str, str]) -> int:
    """Store the role map and map every membership again; return how many memberships changed.

    If the map would promote too many members, it is withheld until `approve`, and only demotions take effect. Resumes
    where an earlier call was interrupted. Each change adds a row to `changes` with cause `settings`.
    """
    with read_transaction(engine) as tx:
        withheld = _if_too_many(tx, dict(role_map))
    if withheld is not None:
        log.warning("role_map_withheld", digest=digest_of(role_map), promotions=withheld["promotions"])
    in_transaction(engine, _store, dict(role_map), withheld)
    return _remap(engine)


def approve(engine: Engine, digest: str, actor: audit.Actor) -> int:
    """Put the withheld map with this digest in force; return how many memberships changed.

    Raises:
        OperatorError: no map with this digest is withheld.
        ConfigurationError: the actor gives no reason.
    """
    in_transaction(engine, _approve, digest, actor)
    return _remap(engine)


def digest_of(role_map: Mapping[str, str]) -> str:
    """Return a short hash of a role map, which names it in an approval."""
    return hashlib.sha256(json.dumps(role_map, sort_keys=True).encode()).hexdigest()[:16]


def role_changes(tx: Connection, role_map: Mapping[str, str]) -> Iterator[RoleChange]:
    """Yield each person with access whose role would change if `role_map` replaced the map in force."""
    current: JsonObject = tx.execute(select(MirrorState.role_map)).scalar_one()
    changed = {slug for slug in {*current, *role_map} if current.get(slug, MEMBER) != role_map.get(slug, MEMBER)}
    if not changed:
        return
    # The view ignores roles of other resource types.
    others = select(Role.id).where(Role.resource_type != ORGANIZATION.object)
    ignored = set(tx.execute(others).scalars())
    view = workspace_members.c
    columns = (view.organization_id, view.user_id, view.role, Membership.workos_roles)
    query = select(*columns).join(Membership, Membership.id == view.membership_id)
    ordered = query.order_by(view.organization_id, view.user_id)
    with tx.execute(ordered, execution_options={"yield_per": FETCH_SIZE}) as rows:
        for organization_id, user_id, before, slugs in rows:
            if changed.isdisjoint(slugs or ()):
                continue
            own = [slug for slug in slugs if ignored.isdisjoint((slug, f"{organization_id}/{slug}"))]
            _, after = local_role(own, role_map)
            if before != after:
                yield RoleChange(organization_id, user_id, before, after)


def _if_too_many(tx: Connection, role_map: dict[str, str]) -> JsonObject | None:
    """Return the map with its numbers, for `MirrorState.withheld_role_map`; None if it may take effect."""
    promotions = sum(found.after == ADMIN for found in role_changes(tx, role_map))
    if promotions <= MAX_PROMOTIONS:
        return None
    members = count_members(tx)
    too_many = promotions > members * MAX_PROMOTED_SHARE
    return {"role_map": role_map, "promotions": promotions, "members": members} if too_many else None


def count_members(tx: Connection) -> int:
    """Return how many people have access, counted in each workspace."""
    return tx.execute(select(func.count()).select_from(workspace_members)).scalar_one()


def _store(tx: Connection, wanted: dict[str, str], withheld: JsonObject | None) -> None:
    # Waits for transactions that use the old map (`lock_role_map`): none may write after re-mapping has begun.
    current = tx.execute(select(MirrorState.role_map).with_for_update()).scalar_one()
    if current == wanted:
        withheld = None  # it was approved meanwhile
    role_map = _less_access(current, wanted) if withheld else wanted
    tx.execute(update(MirrorState).values(withheld_role_map=withheld))
    if current != role_map:
        _put_in_force(tx, current, role_map, audit.Actor(SETTING, Via.SETTINGS), Action.CHANGE_ROLE_MAP)


def _less_access(current: Mapping[str, str], wanted: Mapping[str, str]) -> dict[str, str]:
    """Return the map of the slugs that both maps name, each with the lower role."""
    return {slug: min(role, wanted[slug], key=LOCAL_ROLES.index) for slug, role in current.items() if slug in wanted}


def _approve(tx: Connection, digest: str, actor: audit.Actor) -> None:
    current, withheld = tx.execute(select(MirrorState.role_map, MirrorState.withheld_role_map).with_for_update()).one()
    if withheld is None or digest_of(withheld["role_map"]) != digest:
        raise OperatorError(f"no role map {digest} is withheld; see: workos-sync status")
    tx.execute(update(MirrorState).values(withheld_role_map=None))
    _put_in_force(tx, current, withheld["role_map"], actor, Action.APPROVE_ROLE_MAP)


def _put_in_force(
    tx: Connection, current: Mapping[str, str], role_map: Mapping[str, str], actor: audit.Actor, action: Action
) -> None:
    tx.execute(update(MirrorState).values(role_map=role_map, remap_after=""))
    pairs = {slug: [current.get(slug), role_map.get(slug)] for slug in sorted({*current, *role_map})}
    audit.note(tx, actor, action, roles={slug: pair for slug, pair in pairs.items() if pair[0] != pair[1]})
    before, after = {"roles": current}, {"roles": role_map}
    note_changes(tx, [ChangeRow(ROLE_MAP, SETTING, None, before, after, Cause.SETTINGS, SETTING)])


def _remap(engine: Engine) -> int:
    changed = 0
    while (number := in_transaction(engine, _remap_batch)) is not None:
        changed += number
    if changed:
        log.info("memberships_remapped", changed=changed)
    return changed


def _remap_batch(tx: Connection) -> int | None:
    """Map the next memberships in order of id; return how many changed, or None if there are no more."""
    role_map, after = tx.execute(select(MirrorState.role_map, MirrorState.remap_after).with_for_update()).one()
    if after is None:
        return None
    page = select(Membership.id).where(Membership.id > after).order_by(Membership.id).limit(BATCH)
    ids = list(tx.execute(page).scalars())
    found = insert_and_lock_rows(tx, MEMBERSHIP, ids) if ids else {}
    stored = {id: state for id, state in found.items() if state and not state.deleted}
    mapped = {id: _mapped(state, role_map) for id, state in stored.items()}
    changed = {id: state for id, state in mapped.items() if state != stored[id]}
    save_rows(tx, MEMBERSHIP, changed)
    tx.execute(update(MirrorState).values(remap_after=ids[-1] if ids else None))
    cause = Cause.SETTINGS, SETTING
    note_changes(tx, [change(MEMBERSHIP, id, stored[id], new, *cause) for id, new in changed.items()])
    return len(changed)


def _mapped(state: State, role_map: Mapping[str, str]) -> State:
    workos_role, role = local_role(state.content["workos_roles"] or (), role_map)
    return replace(state, content={**state.content, "workos_role": workos_role, "role": role})
