"""The role map in force, stored in the database so that all processes use the same one.

When it changes, the memberships are mapped again.
"""

from collections.abc import Mapping
from dataclasses import replace

import structlog
from sqlalchemy import Connection, Engine, select, update

from models.database import in_transaction
from models.tables import ROLE_MAP, Action, Cause, MirrorState, Via
from worker import audit
from worker.decision.decide import State
from worker.decision.roles import local_role
from worker.kinds.membership import MEMBERSHIP, Membership
from worker.mirror.apply import change, insert_and_lock_rows, note_changes, save_rows
from worker.mirror.change_rows import ChangeRow

log = structlog.get_logger()

SETTING = "ROLE_MAP"
BATCH = 500
"""Memberships mapped in one transaction."""


def adopt(engine: Engine, role_map: Mapping[str, str]) -> int:
    """Store the role map and map every affected membership again; return how many changed.

    Resumes where an earlier call was interrupted. Each change adds a row to `changes` with cause `settings`.
    """
    in_transaction(engine, _store, dict(role_map))
    changed = 0
    while (number := in_transaction(engine, _remap_batch)) is not None:
        changed += number
    if changed:
        log.info("memberships_remapped", changed=changed)
    return changed


def _store(tx: Connection, role_map: dict[str, str]) -> None:
    # The lock waits for batches that have read the old map, so that none of them writes after re-mapping has begun.
    current = tx.execute(select(MirrorState.role_map).with_for_update()).scalar_one()
    if current != role_map:
        tx.execute(update(MirrorState).values(role_map=role_map, remap_after=""))
        pairs = {slug: [current.get(slug), role_map.get(slug)] for slug in sorted(current | role_map)}
        changed = {slug: pair for slug, pair in pairs.items() if pair[0] != pair[1]}
        audit.note(tx, audit.Actor(SETTING, Via.SETTINGS), Action.CHANGE_ROLE_MAP, roles=changed)
        before, after = {"roles": current}, {"roles": role_map}
        note_changes(tx, [ChangeRow(ROLE_MAP, SETTING, None, before, after, Cause.SETTINGS, SETTING)])


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
