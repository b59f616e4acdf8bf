"""The access review: who has access, why, and who gained, lost or changed it since the previous review.

Every format ends with a line that contains the SHA-256 of all lines above it. The audit has the same hash.
"""

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from enum import StrEnum
from html import escape
from itertools import chain, groupby
from typing import BinaryIO

from sqlalchemy import Connection, Engine, select

from models.database import in_transaction, read_transaction
from models.rows import all_rows, one_row
from models.tables import Action, Audit, Run, RunStatus, Tail, Task
from models.types import Record
from worker import audit
from worker.errors import ConfigurationError, NotKeptError, UnknownIdError
from worker.kinds.membership import Membership
from worker.kinds.organization import Organization
from worker.reports.access import actor_of, cause_of
from worker.reports.past import Moment, members, moment_of, now, require_kept, with_causes

WORKSPACES = 100
"""Workspaces that are read at once."""
MEMBER = ("email", "user_id", "role", "workos_role", "membership_id", "since")
CHANGE = ("change", "previous_role", "changed_at", "cause", "actor")
COLUMNS = ("organization_id", "workspace_name", *MEMBER, *CHANGE)
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""A spreadsheet takes a cell that begins so for a formula."""
HEAD = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Access review</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>
body { font: 13px/1.5 sans-serif; margin: 2em; } h2 { font-size: 1.1em; margin: 1.5em 0 .3em; break-after: avoid; }
table { border-collapse: collapse; width: 100%; } thead { display: table-header-group; } tr { break-inside: avoid; }
th, td { border: 1px solid #999; padding: .2em .5em; text-align: left; overflow-wrap: anywhere; }
th, td:is(:nth-child(3), :nth-child(7), :nth-child(8)) { white-space: nowrap; }
dt { float: left; clear: left; width: 12em; font-weight: bold; } .lost, .gained, .changed { font-weight: bold; }
</style></head><body>
<h1>Access review</h1>
"""


class AccessChange(StrEnum):
    """How a person's access differs from the time of the previous review."""

    GAINED = "gained"
    LOST = "lost"
    CHANGED = "changed"
    """Another role."""
    NONE = "none"


def write_review(
    engine: Engine,
    file: BinaryIO,
    form: str,
    actor: audit.Actor,
    *,
    organization_id: str | None = None,
    at: datetime | None = None,
    since: datetime | None = None,
) -> None:
    """Write a review to `file` in UTF-8, and record in the audit who made it, of what, when, and its hash.

    Args:
        engine: the mirror.
        file: an empty file.
        form: one of `FORMATS`.
        actor: who makes the review.
        organization_id: the workspace; None for all.
        at: the time of the review, aware; None is now.
        since: the time to compare with, aware; None is that of the previous review of the same workspaces.

    Raises:
        ConfigurationError: `since` is not before `at`.
        TimeError: one of the times has no answer, as in `worker.reports.past.moment_of`.
        UnknownIdError: there is no such workspace.
    """
    digest = hashlib.sha256()
    lines, last_line = FORMATS[form]
    with read_transaction(engine) as tx:
        moment = now(tx) if at is None else moment_of(tx, at)
        if since is not None and since >= moment.at:
            raise ConfigurationError(f"since ({since.isoformat()}) must be before the time of the review")
        before = _previous(tx, organization_id, moment) if since is None else moment_of(tx, since)
        facts = _facts(tx, organization_id, moment, before, actor)
        if at is None:  # how complete the mirror was at an earlier time is not known
            facts["complete_to"] = _text(tx.execute(select(Tail.complete_to)).scalar_one()) or None
        for line in lines(facts, _rows(tx, organization_id, moment, before)):
            digest.update(line.encode())
            file.write(line.encode())
    about = {name: facts[name] for name in ("as_of", "since")} | {"format": form, "sha256": digest.hexdigest()}
    about["change_id"] = moment.change_id
    in_transaction(engine, audit.note, actor, Action.REVIEW, organization_id=organization_id, **about)
    file.write(last_line.format(digest.hexdigest()).encode())


def access_changes(engine: Engine, since: datetime, organization_id: str | None = None) -> list[Record]:
    """Return a row for each person who gained, lost or changed access since a time, the newest change first.

    A row has `MEMBER` and `CHANGE`, and the workspace. The errors are those of `write_review`.
    """
    with read_transaction(engine) as tx:
        rows = _rows(tx, organization_id, now(tx), moment_of(tx, since))
        changed = (row for row in rows if row["change"] is not AccessChange.NONE)
        return sorted(changed, key=lambda row: str(row["changed_at"]), reverse=True)


def _previous(tx: Connection, organization_id: str | None, moment: Moment) -> Moment | None:
    """Return the latest earlier moment of which there is a review of the same workspaces; None without one.

    It has the change up to which that review read, so that no change falls between the two.
    """
    as_of = Audit.details["as_of"].as_string()
    same = (Audit.action == Action.REVIEW, Audit.organization_id.is_not_distinct_from(organization_id))
    earlier = select(Audit.details).where(*same, as_of < moment.at.isoformat()).order_by(as_of.desc()).limit(1)
    found = tx.execute(earlier).scalar_one_or_none()
    if found is None:
        return None
    previous = Moment(datetime.fromisoformat(found["as_of"]), found["change_id"])
    try:
        require_kept(tx, previous.at)
    except NotKeptError as error:
        raise NotKeptError(f"the previous review cannot be compared with; give --since: {error}") from error
    return previous


def _facts(
    tx: Connection, organization_id: str | None, moment: Moment, before: Moment | None, actor: audit.Actor
) -> Record:
    """Return what the review is about, and which resync verified it. Times are ISO 8601 text in UTC."""
    full = (Run.task == Task.RESYNC, Run.status == RunStatus.DONE, Run.organization_id.is_(None), ~Run.dry_run)
    compared_all = (Run.approves.is_(None), Run.total.is_(None))
    ended = select(Run.id, Run.finished_at).where(*full, *compared_all, Run.finished_at <= moment.at)
    resync = one_row(tx, ended.order_by(Run.finished_at.desc()).limit(1)) or {}
    facts = {
        "as_of": moment.at,
        "since": before and before.at,
        "scope": organization_id or "all workspaces",
        "complete_to": None,
        "verified_by_resync": resync.get("id"),
        "verified_at": resync.get("finished_at"),
        "made_by": actor.who,
    }
    return {name: _text(value) or None for name, value in facts.items()}


def _rows(tx: Connection, organization_id: str | None, moment: Moment, before: Moment | None) -> Iterator[Record]:
    """Yield a row for each person who has access, or lost it since `before`; sorted by workspace and address."""
    ids = select(Organization.id).order_by(Organization.id)
    if organization_id is not None:
        ids = ids.where(Organization.id == organization_id)
    every = list(tx.execute(ids).scalars())
    if organization_id is not None and not every:
        raise UnknownIdError(f"the mirror has no workspace {organization_id}")
    for first in range(0, len(every), WORKSPACES):
        some = every[first : first + WORKSPACES]
        old = {} if before is None else _by_person(tx, some, before)
        current = _by_person(tx, some, moment)
        found = [
            row
            | {
                "role": row["role"] if person in current else None,
                "previous_role": old[person]["role"] if person in old else None,
            }
            for person, row in (old | current).items()
        ]
        for row in sorted(with_causes(tx, found, moment), key=_place):
            change = None if before is None else _change(row)
            yield row | {"change": change, "cause": cause_of(row), "actor": actor_of(row)}


def _by_person(tx: Connection, organization_ids: list[str], moment: Moment) -> dict[tuple[str, str], Record]:
    view = members(tx, moment, Membership.organization_id.in_(organization_ids))
    rows = all_rows(tx, select(view).where(view.c.organization_id.in_(organization_ids)))
    return {(row["organization_id"], row["user_id"]): row for row in rows}


def _place(row: Record) -> tuple[str, str, str]:
    return row["organization_id"], row["email"] or "", row["user_id"]


def _change(row: Record) -> AccessChange:
    if row["previous_role"] is None:
        return AccessChange.GAINED
    if row["role"] is None:
        return AccessChange.LOST
    return AccessChange.NONE if row["role"] == row["previous_role"] else AccessChange.CHANGED


def _text(value: object) -> str:
    if value is None:
        return ""
    return value.isoformat() if isinstance(value, datetime) else str(value)


# Formats: each yields lines, the last of which is followed by the line with the hash


def _csv(facts: Record, rows: Iterable[Record]) -> Iterator[str]:
    yield csv_line(COLUMNS)
    for row in rows:
        yield csv_line(row[name] for name in COLUMNS)
    for name, value in facts.items():
        yield csv_line([name, value])


def csv_line(cells: Iterable[object]) -> str:
    """Return a line of CSV in which no spreadsheet finds a formula."""
    line = io.StringIO()
    # Python 3.11 does not quote a lone carriage return, at which spreadsheets begin a row.
    writer = csv.writer(line, lineterminator="\n", quoting=csv.QUOTE_ALL)
    texts = map(_text, cells)
    writer.writerow(f"'{text}" if text.startswith(FORMULA) else text for text in texts)
    return line.getvalue()


def _json(facts: Record, rows: Iterable[Record]) -> Iterator[str]:
    yield f"{json.dumps(facts)[:-1]},\n"
    separator = '"members": [\n'
    for row in rows:
        yield separator + json.dumps({name: _text(row[name]) or None for name in COLUMNS})
        separator = ",\n"
    yield "\n],\n" if separator == ",\n" else '"members": [],\n'


def _html(facts: Record, rows: Iterable[Record]) -> Iterator[str]:
    yield HEAD
    facts_shown = (f"<dt>{_label(name)}<dd>{escape(value or 'none')}" for name, value in facts.items())
    yield f"<dl>{''.join(facts_shown)}</dl>\n"
    for _, of_workspace in groupby(rows, key=lambda row: row["organization_id"]):
        first = next(of_workspace)
        yield f"<h2>{escape(first['workspace_name'] or 'Unnamed')} ({escape(first['organization_id'])})</h2>\n"
        yield f"<table><thead><tr>{''.join(f'<th>{_label(name)}' for name in (*MEMBER, *CHANGE))}</thead>\n"
        for row in chain([first], of_workspace):
            cells = "".join(f"<td>{escape(_shown(row[name]))}" for name in (*MEMBER, *CHANGE))
            yield f'<tr class="{row["change"] or ""}">{cells}\n'
        yield "</table>\n"


def _label(name: str) -> str:
    return name.replace("_", " ").capitalize().replace("Workos", "WorkOS")


def _shown(value: object) -> str:
    return f"{value:%Y-%m-%d %H:%M:%S} UTC" if isinstance(value, datetime) else _text(value)


FORMATS: dict[str, tuple[Callable[[Record, Iterable[Record]], Iterator[str]], str]] = {
    "csv": (_csv, "SHA-256 of the lines above,{}\n"),
    "json": (_json, '"sha256": "{}"}}\n'),
    "html": (_html, "<p>SHA-256 of the lines above: {}</p></body></html>\n"),
}
"""Format → the function that yields its lines, and the last line, with the hash for `{}`."""
