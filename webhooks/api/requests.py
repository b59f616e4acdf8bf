"""Query parameters and bodies of requests to the API. Times are ISO 8601 with an offset, ids those of WorkOS."""

import re
from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from models.tables import Action, Via
from models.views import LARGEST_BOUND
from worker.decision.payload import is_id, parse_time
from worker.kinds import KINDS
from worker.repair.refresh import ACCESS, Target

Id = Annotated[str, Field(min_length=1, max_length=255, pattern="^[ -~]+$")]
"""A WorkOS id: printable ASCII."""
Text = Annotated[str, Field(min_length=1, max_length=320, pattern=r"^[^\x00-\x1f\x7f]+$")]
Limit = Annotated[int, Field(ge=1, le=500)]


class Query(BaseModel):
    """Query parameters. Unknown ones are rejected, because a misspelled filter must not return everything."""

    model_config = ConfigDict(extra="forbid")


class Paging(Query):
    """Pagination parameters."""

    after: Annotated[Id | None, Field(description="`next` of the previous page.")] = None
    limit: Limit = 100


class WorkspaceQuery(Paging):
    """Filters for workspaces."""

    state: Literal["active", "deleted"] | None = None
    external_id: Text | None = None


class InWorkspace(Paging):
    """Pagination parameters, and a workspace to filter by."""

    organization_id: Id | None = None


class MemberQuery(InWorkspace):
    """Filters for members: by workspace, by person, or both."""

    user_id: Id | None = None
    email: Annotated[Text | None, Field(description="The person's current e-mail address, also with `at`.")] = None
    workspace_external_id: Text | None = None
    user_external_id: Text | None = None
    at: Annotated[
        AwareDatetime | None,
        Field(
            description="Answer as the mirror did at this time: ISO 8601 with an offset. "
            "Needs organization_id, user_id or email."
        ),
    ] = None
    as_workos: Annotated[
        bool, Field(description="With `at`: answer as WorkOS had it at that time, by its clock, not as the mirror did.")
    ] = False

    @model_validator(mode="after")
    def _has_time(self) -> Self:
        if self.as_workos and self.at is None:
            raise ValueError("as_workos needs at")
        return self

    @field_validator("at", mode="before")
    @classmethod
    def _is_text(cls, at: object) -> object:
        """Refuse a number, which pydantic would take for seconds since 1970."""
        if isinstance(at, str) and not _is_time(at):
            raise ValueError("is not a time; write 2026-01-31T12:00:00Z, and + as %2B")
        return at

    @field_validator("at")
    @classmethod
    def _needs_filter(cls, at: datetime | None, given: ValidationInfo) -> datetime | None:
        if at is not None and not any(given.data.get(name) for name in ("organization_id", "user_id", "email")):
            raise ValueError("needs organization_id, user_id or email")
        return at


class InvitationQuery(InWorkspace):
    """Filters for invitations: by workspace, invited address, and status."""

    email: Text | None = None
    status: Text | None = None


class AutoJoinQuery(Query):
    """The e-mail address to check. The caller must have verified it."""

    email: Text


class EventQuery(InWorkspace):
    """Filters for events."""

    status: Literal["pending", "done", "failed", "dismissed"] | None = None
    type: Id | None = None


class AuditQuery(Query):
    """Filters for the audit. `after` is an id."""

    who: Text | None = None
    via: Via | None = None
    action: Action | None = None
    object_id: Text | None = None
    organization_id: Id | None = None
    after: Annotated[int | None, Field(ge=1, le=2**63 - 1, description="`next` of the previous page.")] = None
    limit: Limit = 100


class ChangesQuery(Query):
    """The cursor of the feed, and how long to wait for a change."""

    after: Annotated[int, Field(ge=0, le=2**63 - 1, description="The highest id seen; 0 to start.")] = 0
    limit: Limit = 100
    wait: Annotated[int, Field(ge=0, le=25, description="Seconds to wait for a change if there is none yet.")] = 0


class AccessQuery(Query):
    """A person, a workspace, and how old the answer may be."""

    user_id: Id
    organization_id: Id
    max_staleness: Annotated[
        float | None,
        Field(
            gt=0,
            le=LARGEST_BOUND,
            allow_inf_nan=False,
            description="In seconds. The answer is never older. Without it, the answer may have any age.",
        ),
    ] = None
    wait: Annotated[
        Id | None,
        Field(
            description="The id of an event, or a time (ISO 8601) by WorkOS's clock. The answer is delayed by up to "
            "five seconds until the event is applied, or the mirror is complete up to the time."
        ),
    ] = None

    @field_validator("wait")
    @classmethod
    def _is_usable(cls, wait: str | None) -> str | None:
        if wait is not None and _is_time(wait) and parse_time(wait) is None:
            raise ValueError("is not a time; write 2026-01-31T12:00:00Z, and + as %2B")
        return wait

    @property
    def wait_event(self) -> str | None:
        """The event to wait for."""
        return None if self.wait is None or _is_time(self.wait) else self.wait

    @property
    def wait_time(self) -> datetime | None:
        """The time to wait for, in UTC."""
        return parse_time(self.wait) if self.wait is not None and _is_time(self.wait) else None


def _is_time(wait: str) -> bool:
    return re.match(r"\d{4}-", wait, re.ASCII) is not None


READABLE = [name for name, kind in KINDS.items() if kind.is_readable]
"""The kinds that WorkOS's API shows."""


def _require_kind(name: str) -> str:
    if name not in READABLE:
        raise ValueError(f"must be one of {', '.join(READABLE)}")
    return name


def _require_id(id: str) -> str:
    if not is_id(id):
        raise ValueError("is not an id")
    return id


ReadableId = Annotated[str, AfterValidator(_require_id)]
"""An id that can be a segment of a path of WorkOS's API."""


class RefreshRequest(BaseModel):
    """The object to read from WorkOS, by `kind` and `id`; or access, by `organization_id` and `user_id`.

    `id` is the key in the mirror: for a permission its slug, for a role `slug` or `organization_id/slug`.
    """

    model_config = ConfigDict(extra="forbid")

    kind: Annotated[str, AfterValidator(_require_kind), Field(json_schema_extra={"enum": READABLE})] | None = None
    id: str | None = None
    organization_id: ReadableId | None = None
    user_id: ReadableId | None = None

    @model_validator(mode="after")
    def _is_one_target(self) -> Self:
        is_object = None not in (self.kind, self.id)
        is_access = None not in (self.organization_id, self.user_id)
        if is_object is is_access or len(self.model_dump(exclude_none=True)) != 2:  # noqa: PLR2004 - fields
            raise ValueError("give kind and id, or organization_id and user_id")
        for segment in (self.id or "").split("/", 1 if self.kind == "role" else 0) if is_object else ():
            _require_id(segment)
        return self

    @property
    def target(self) -> Target:
        """The object or access to read."""
        if self.kind is not None and self.id is not None:
            return Target(self.kind, self.id)
        return Target(ACCESS, self.organization_id or "", self.user_id or "")
