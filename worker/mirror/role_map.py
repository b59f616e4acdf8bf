"""The role map in force. It stands in the database, so that all writers use one; a change re-maps the memberships."""

from collections.abc import Mapping
from dataclasses import replace

import structlog
from sqlalchemy import Connection, Engine, select, update

from models.database import in_transaction
from models.tables import Kind, Membership, Mirror
from worker.decision.decide import State
from worker.decision.roles import local_role
from worker.mirror.apply import change, lock_rows, note_changes, save_rows

log = structlog.get_logger()

STEP = 500
"""Memberships re-mapped in one transaction."""


def adopt(engine: Engine, role_map: Mapping[str, str]) -> int:
    """Put `role_map` in force and re-map every membership it changes; return how many changed.

    Goes on where an earlier call was interrupted. Each leaves a row of `changes`, cause `settings`.
    """
    in_transaction(engine, _publish, role_map)
    changed = 0
    while (step := in_transaction(engine, _remap_step)) is not None:
        changed += step
    if changed:
        log.info("members_remapped", changed=changed)
    return changed


def _publish(tx: Connection, role_map: Mapping[str, str]) -> None:
    # Waits for the batches that read the old map, so that none of them writes after the re-mapping began.
    current = tx.execute(select(Mirror.role_map).with_for_update()).scalar_one()
    if current != dict(role_map):
        tx.execute(update(Mirror).values(role_map=dict(role_map), remap_after=""))


def _remap_step(tx: Connection) -> int | None:
    """Re-map the next memberships by id; return how many changed, None when all are done."""
    role_map, after = tx.execute(select(Mirror.role_map, Mirror.remap_after).with_for_update()).one()
    if after is None:
        return None
    page = select(Membership.id).where(Membership.id > after).order_by(Membership.id).limit(STEP)
    ids = list(tx.execute(page).scalars())
    found = lock_rows(tx, Kind.MEMBERSHIP, ids) if ids else {}
    stored = {id: state for id, state in found.items() if state and not state.deleted}
    mapped = {id: _mapped(state, role_map) for id, state in stored.items()}
    changed = {id: state for id, state in mapped.items() if state != stored[id]}
    save_rows(tx, Kind.MEMBERSHIP, changed)
    tx.execute(update(Mirror).values(remap_after=ids[-1] if ids else None))
    note_changes(
        tx, [change(Kind.MEMBERSHIP, id, stored[id], new, "settings", "ROLE_MAP") for id, new in changed.items()]
    )
    return len(changed)


def _mapped(state: State, role_map: Mapping[str, str]) -> State:
    workos_role, role = local_role(state.content["workos_roles"] or (), role_map)
    return replace(state, content={**state.content, "workos_role": workos_role, "role": role})
