"""Lists of what the mirror holds: workspaces, access, people, domains, invitations, permissions and changes."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import islice

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    FromClause,
    Table,
    and_,
    exists,
    func,
    or_,
    select,
    true,
)

from models.addresses import normalize_domain
from models.database import read_transaction
from models.rows import all_rows, one_row, read_rows
from models.tables import Change, FailedEffect
from models.types import Record, inline_literal
from models.views import (
    auto_join_domains,
    json_items,
    seats,
    sign_in_methods,
    workspace_invitations,
    workspace_members,
    workspaces,
)
from worker.kinds.addresses import has_address
from worker.kinds.domain import Domain
from worker.kinds.invitation import Invitation
from worker.kinds.membership import Membership
from worker.kinds.permission import Permission
from worker.kinds.role import Role
from worker.kinds.user import User
from worker.mirror.uncertainty import ALL_UNCERTAIN
from worker.reports.access import domain_states, invitation_states, uncertain_answers
from worker.reports.listings.names import with_names
from worker.reports.listings.paging import Page, Place, given, read_page
from worker.reports.matching import contains, is_person
from worker.reports.past import members, moment_of, with_causes, workspaces_at
from worker.reports.past_workos import members_as_workos, workspace_as_workos

MAX_ROLES = 20
"""Roles shown for a permission."""


def _page(
    engine: Engine,
    view: Table,
    key: str,
    filters: Mapping[str, str | None],
    after: str | None,
    limit: int,
    *conditions: ColumnElement[bool],
) -> list[Record]:
    """Return a page of a view, sorted by the column `key`."""
    query = select(view).where(*conditions).order_by(view.c[key]).limit(limit)
    if after is not None:
        query = query.where(view.c[key] > after)
    return read_rows(engine, query.filter_by(**given(filters)))


def workspace(engine: Engine, organization_id: str) -> Record | None:
    """Return a workspace, which may be deleted; None if the id is unknown."""
    with read_transaction(engine) as tx:
        return one_row(tx, select(workspaces).filter_by(organization_id=organization_id))


def list_workspaces(
    engine: Engine,
    *,
    state: str | None = None,
    external_id: str | None = None,
    name: str | None = None,
    domain: str | None = None,
    after: str | None = None,
    limit: int = 50,
) -> list[Record]:
    """Return workspaces sorted by id: in a state (`active` or `deleted`), or whose name contains a text in any case.

    With `domain`, in any spelling, only those that have it, verified or not.
    """
    which = [] if name is None else [contains(workspaces.c.name, name)]
    if domain is not None:
        has_it = (Domain.normalized == normalize_domain(domain), Domain.deleted_by.is_(None))
        which.append(workspaces.c.organization_id.in_(select(Domain.organization_id).where(*has_it)))
    filters = {"state": state, "external_id": external_id}
    return _page(engine, workspaces, "organization_id", filters, after, limit, *which)


def with_counts(engine: Engine, rows: list[Record]) -> list[Record]:
    """Return rows of workspaces, each with its number of `members`, who have access, and of pending `invitations`."""
    view = workspace_invitations.c
    pending = select(view.organization_id, func.count()).where(view.status == "pending").group_by(view.organization_id)
    with read_transaction(engine) as tx:
        rows = _with_members(tx, rows)
        ids = [row["organization_id"] for row in rows]
        invitations: dict[str, int] = dict(tx.execute(pending.where(view.organization_id.in_(ids))).all())
    return [row | {"invitations": invitations.get(row["organization_id"], 0)} for row in rows]


def _with_members(tx: Connection, rows: list[Record]) -> list[Record]:
    ids = [row["organization_id"] for row in rows]
    counted = select(seats.c.organization_id, seats.c.seats).where(seats.c.organization_id.in_(ids))
    members = dict(tx.execute(counted).all())
    return [row | {"members": members.get(row["organization_id"], 0)} for row in rows]


def workspaces_page(engine: Engine, place: Place, *, search: str | None = None, deleted: bool = False) -> Page:
    """Return a page of workspaces sorted by name: of the live ones, or of the deleted ones.

    With `search`, only workspaces whose name contains it, or whose id or external id it is. A row has the number of its
    `members`.
    """
    view = workspaces.c
    query = select(workspaces).where(view.state == ("deleted" if deleted else "active"))
    if search is not None:
        query = query.where(
            or_(contains(view.name, search), view.organization_id == search, view.external_id == search)
        )
    with read_transaction(engine) as tx:
        page = read_page(tx, query, place, func.lower(func.coalesce(view.name, "")), view.organization_id)
        return page._replace(rows=_with_members(tx, page.rows))


def list_access(
    engine: Engine,
    filters: Mapping[str, str],
    *,
    at: datetime | None = None,
    as_workos: bool = False,
    after: str | None = None,
    limit: int = 50,
) -> list[Record]:
    """Return the memberships that give access, sorted by id, by `email` or columns of the view.

    `email` is a current address of a person in any spelling. With `at`, an aware time, the answer is what the mirror
    answered then, with the columns `worker.reports.past.CAUSE`; or, with `as_workos`, who had access as WorkOS had it,
    as `worker.reports.past_workos.members_as_workos`. Without a filter, both are slow.

    Raises:
        FutureTimeError: `at` has not come yet.
        NotKeptError: `at` is too long ago.
    """
    of_membership = {name: value for name, value in filters.items() if not name.endswith("external_id")}
    which = _filter(Membership.__table__, of_membership)
    external_ids = filters.items() - of_membership.items()
    with read_transaction(engine) as tx:
        if at is not None and as_workos:
            found = members_as_workos(tx, at, *which)
            matching = (row for row in found if all(row[name] == value for name, value in external_ids))
            return list(islice((row for row in matching if row["membership_id"] > (after or "")), limit))
        moment = None if at is None else moment_of(tx, at)
        view = members(tx, moment, *which)
        query = select(view).where(*_filter(view, filters)).order_by(view.c.membership_id).limit(limit)
        rows = all_rows(tx, query if after is None else query.where(view.c.membership_id > after))
        return rows if moment is None else with_causes(tx, rows, moment)


def _filter(source: FromClause, filters: Mapping[str, str]) -> list[ColumnElement[bool]]:
    """Return the conditions on a table with these columns and `user_id`, by which `list_access` filters."""
    of_email = select(User.id).where(has_address(User, filters.get("email", "")))
    return [
        source.c.user_id.in_(of_email) if name == "email" else source.c[name] == value
        for name, value in filters.items()
    ]


def people_page(engine: Engine, place: Place, *, search: str | None = None, deleted: bool = False) -> Page:
    """Return a page of people sorted by address: of those who are not deleted, or of those who are.

    With `search`, only people whose address and name contain its words, or whose id it is. A part with a whole domain,
    or a whole address, may have any spelling. A row has the `workspaces` that the person has access to: id, name, role.
    """
    columns = (User.id, User.email, User.first_name, User.last_name, User.erased, User.updated_at)
    query = select(*columns).where(User.deleted_by.is_not(None) if deleted else User.deleted_by.is_(None))
    if search is not None:
        query = query.where(or_(is_person(search), User.id == search))
    with read_transaction(engine) as tx:
        page = read_page(tx, query, place, func.coalesce(User.email, inline_literal("")), User.id)
        view = workspace_members.c
        of_person = (view.user_id, view.organization_id, view.workspace_name, view.role)
        workspaces_of_people = select(*of_person).where(view.user_id.in_([row["id"] for row in page.rows]))
        workspaces: dict[str, list[Record]] = {row["id"]: [] for row in page.rows}
        for row in all_rows(tx, workspaces_of_people.order_by(view.workspace_name, view.organization_id)):
            workspaces[row.pop("user_id")].append(row)
    return page._replace(rows=[row | {"workspaces": workspaces[row["id"]]} for row in page.rows])


def list_domains(
    engine: Engine, organization_id: str | None = None, *, off: bool = False, after: str | None = None, limit: int = 50
) -> list[Record]:
    """Return domains that are not deleted, sorted by id, with their auto-join state and the reason.

    With `off`, only domains that do not auto-join.
    """
    ids = select(Domain.id).where(*_domains(organization_id, off)).order_by(Domain.id).limit(limit)
    with read_transaction(engine) as tx:
        found = tx.execute(ids if after is None else ids.where(Domain.id > after)).scalars()
        return sorted(domain_states(tx, Domain.id.in_(list(found))), key=lambda row: str(row["id"]))


def _domains(organization_id: str | None, off: bool) -> list[ColumnElement[bool]]:
    which: list[ColumnElement[bool]] = [Domain.deleted_by.is_(None)]
    if organization_id is not None:
        which.append(Domain.organization_id == organization_id)
    if off:
        view = auto_join_domains.c
        joining = (view.domain == Domain.normalized, view.organization_id == Domain.organization_id)
        which.append(
            ~exists(select(view.domain).where(*joining).offset(0))
        )  # one after the other, until a page is full
    return which


def list_sign_in(
    engine: Engine, organization_id: str | None = None, *, after: str | None = None, limit: int = 50
) -> list[Record]:
    """Return active single sign-on connections, sorted by id."""
    return _page(engine, sign_in_methods, "connection_id", {"organization_id": organization_id}, after, limit)


def list_invitations(
    engine: Engine, filters: Mapping[str, str], *, after: str | None = None, limit: int = 50
) -> list[Record]:
    """Return invitations to live workspaces, sorted by id, by `organization_id`, `status` or `email`.

    `email` is an address in any spelling.
    """
    others = {name: value for name, value in filters.items() if name != "email"}
    sent = select(Invitation.id).where(has_address(Invitation, filters.get("email", "")))
    which = [workspace_invitations.c.invitation_id.in_(sent)] if "email" in filters else []
    return _page(engine, workspace_invitations, "invitation_id", others, after, limit, *which)


def list_members(
    engine: Engine, organization_id: str, at: datetime | None = None, *, as_workos: bool = False
) -> Record | None:
    """Return a workspace with its `members`, who have access, and its pending `invitations`, sorted by address.

    None if the workspace is unknown. With `at`, all of it is what the mirror answered at that time, or what WorkOS had,
    as in `list_access`, whose errors it raises, and there are no `invitations`.
    """
    with read_transaction(engine) as tx:
        if at is not None and as_workos:
            had_access = members_as_workos(tx, at, Membership.organization_id == organization_id)
            sorted_rows = sorted(had_access, key=lambda row: (row["email"] or "", row["user_id"]))
            had = workspace_as_workos(tx, at, organization_id)
            return had and had | {"members": sorted_rows}
        moment = None if at is None else moment_of(tx, at)
        found = one_row(tx, workspaces_at(moment, organization_id))
        view = members(tx, moment, Membership.organization_id == organization_id)
        in_workspace = select(view).where(view.c.organization_id == organization_id)
        rows = all_rows(tx, in_workspace.order_by(view.c.email, view.c.user_id))
        if found is None:
            return None
        if moment is not None:
            return found | {"members": with_causes(tx, rows, moment)}
        pending = select(workspace_invitations).filter_by(organization_id=organization_id, status="pending")
        invited = workspace_invitations.c
        by_address = pending.order_by(invited.email, invited.invitation_id)
        return found | {"members": rows, "invitations": all_rows(tx, by_address)}


def members_page(
    engine: Engine, organization_id: str, place: Place, *, search: str | None = None, role: str | None = None
) -> Page:
    """Return a page of the people who have access to a workspace, sorted by address.

    With `search`, only those whose address contains it, or whose id it is; with `role`, only those who have it.
    """
    view = workspace_members.c
    query = select(workspace_members).where(view.organization_id == organization_id)
    if search is not None:
        query = query.where(or_(contains(view.email, search), view.user_id == search))
    if role is not None:
        query = query.where(view.role == role)
    with read_transaction(engine) as tx:
        return read_page(tx, query, place, func.coalesce(view.email, inline_literal("")), view.user_id)


def invitations_page(engine: Engine, organization_id: str, place: Place) -> Page:
    """Return a page of the invitations to a workspace, newest first, as `invitation_states`."""
    of_workspace = (Invitation.organization_id == organization_id, Invitation.deleted_by.is_(None))
    with read_transaction(engine) as tx:
        ids = select(Invitation.id).where(*of_workspace, Invitation.revision > 0)
        page = read_page(tx, ids, place, Invitation.id, Invitation.id, newest_first=True)
        found = {row["id"]: row for row in invitation_states(tx, Invitation.id.in_([row["id"] for row in page.rows]))}
    return page._replace(rows=[found[row["id"]] for row in page.rows])


def domains_page(engine: Engine, place: Place, *, organization_id: str | None = None, off: bool = False) -> Page:
    """Return a page of domains as `list_domains`, as `with_names`."""
    with read_transaction(engine) as tx:
        ids = select(Domain.id).where(*_domains(organization_id, off))
        page = read_page(tx, ids, place, Domain.id, Domain.id, counted=not off)
        found = {row["id"]: row for row in domain_states(tx, Domain.id.in_([row["id"] for row in page.rows]))}
        return page._replace(rows=with_names(tx, [found[row["id"]] for row in page.rows]))


def sign_in_page(engine: Engine, organization_id: str, place: Place) -> Page:
    """Return a page of a workspace's active single sign-on connections, sorted by id."""
    view = sign_in_methods.c
    with read_transaction(engine) as tx:
        query = select(sign_in_methods).where(view.organization_id == organization_id)
        return read_page(tx, query, place, view.connection_id, view.connection_id)


def changes_page(engine: Engine, organization_id: str, place: Place) -> Page:
    """Return a page of the changes in a workspace, newest first, as `with_names`."""
    with read_transaction(engine) as tx:
        query = select(Change.__table__).where(Change.organization_id == organization_id)
        page = read_page(tx, query, place, Change.id, Change.id, newest_first=True)
        return page._replace(rows=with_names(tx, page.rows))


def list_uncertain(engine: Engine, organization_id: str) -> list[Record]:
    """Return why bounded answers about a workspace are stale, as `worker.reports.access.uncertain_answers`."""
    about = or_(FailedEffect.organization_id == organization_id, and_(*ALL_UNCERTAIN))
    with read_transaction(engine) as tx:
        return uncertain_answers(tx, about)


def list_permissions(engine: Engine, *, after: str | None = None, limit: int = 50) -> list[Record]:
    """Return live permissions, sorted by slug, each with `roles`: the ids of live roles that grant it.

    Roles of the environment come first. At most `MAX_ROLES` are returned for each permission.
    """
    live = select(Permission.__table__).where(Permission.deleted_by.is_(None)).order_by(Permission.id).limit(limit)
    with read_transaction(engine) as tx:
        found = all_rows(tx, live.where(Permission.id > (after or "")))
        granting = _roles_granting(tx, [row["id"] for row in found])
    return [row | {"roles": granting[row["id"]]} for row in found]


def _roles_granting(tx: Connection, slugs: Sequence[str]) -> Mapping[str, list[str]]:
    """Return the roles that grant each of these permissions."""
    granted = json_items(tx, Role.permissions)
    slug = granted.c.value
    place = func.row_number().over(partition_by=slug, order_by=(Role.organization_id.is_not(None), Role.id))
    roles = select(slug, Role.id, place.label("place")).select_from(Role).join(granted, true())
    live = roles.where(Role.deleted_by.is_(None), slug.in_(slugs)).subquery().c
    first = select(live.value, live.id).where(live.place <= MAX_ROLES).order_by(live.value, live.place)
    granting = defaultdict[str, list[str]](list)
    for permission, role in tx.execute(first):
        granting[permission].append(role)
    return granting
