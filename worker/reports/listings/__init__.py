"""Lists of events, workspaces, people, runs and the audit, and the details of one event or run.

A function `list_…` returns at most `limit` rows that match all given filters; a filter that is None matches everything.
`after` is the id of the last row of the previous page. A function `…_page` returns a `Page` for people. Times are
aware, in UTC.
"""

from worker.reports.listings.audit import audit_page, list_audit
from worker.reports.listings.auto_join import joins_page, missing_members_page, without_admin_page
from worker.reports.listings.events import events_page, failures, list_events, show_event
from worker.reports.listings.hooks import deliveries_page
from worker.reports.listings.mirror import (
    changes_page,
    domains_page,
    invitations_page,
    list_access,
    list_domains,
    list_invitations,
    list_members,
    list_permissions,
    list_sign_in,
    list_uncertain,
    list_workspaces,
    members_page,
    people_page,
    sign_in_page,
    with_counts,
    workspace,
    workspaces_page,
)
from worker.reports.listings.names import named
from worker.reports.listings.paging import Page, Place, page_of
from worker.reports.listings.runs import (
    approval,
    drift,
    drift_page,
    list_runs,
    run,
    run_as_json,
    runs_page,
)

__all__ = [
    "Page",
    "Place",
    "approval",
    "audit_page",
    "changes_page",
    "deliveries_page",
    "domains_page",
    "drift",
    "drift_page",
    "events_page",
    "failures",
    "invitations_page",
    "joins_page",
    "list_access",
    "list_audit",
    "list_domains",
    "list_events",
    "list_invitations",
    "list_members",
    "list_permissions",
    "list_runs",
    "list_sign_in",
    "list_uncertain",
    "list_workspaces",
    "members_page",
    "missing_members_page",
    "named",
    "page_of",
    "people_page",
    "run",
    "run_as_json",
    "runs_page",
    "show_event",
    "sign_in_page",
    "with_counts",
    "without_admin_page",
    "workspace",
    "workspaces_page",
]
