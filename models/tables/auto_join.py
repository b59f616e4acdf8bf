"""Auto-join: domains, workspace settings, and people who join."""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import Index
from sqlalchemy.orm import Mapped, mapped_column

from models.enums import JoinState
from models.tables.base import Base, index_where
from models.tables.mirror import Cause
from models.types import db_now

JOIN = "join"
"""The `kind` of rows in `changes` that record an operator's decision to block or unblock a person in a workspace.

The object is the person, or the invitation if no user has its address. `before` and `after` contain `state` (`blocked`
or `unblocked`), `reasons` and `why`.
"""
WORKSPACE_SETTINGS = "workspace_settings"
"""The `kind` of rows in `changes` about a workspace's own settings. The object is the workspace."""


class AutoJoinState(StrEnum):
    """The auto-join state of a domain."""

    PENDING = "pending"
    VERIFIED = "verified"
    FAILED = "failed"
    CONFLICTED = "conflicted"
    """Another live workspace has verified it too: nobody joins either of them."""
    REVOKED = "revoked"
    """The domain or its workspace is deleted."""


class AutoJoin(Base):
    """The auto-join state of a domain that was last recorded in `changes`. The view `auto_join_domains` ignores it."""

    __tablename__ = "auto_joins"

    domain_id: Mapped[str] = mapped_column(primary_key=True)
    domain: Mapped[str | None]
    organization_id: Mapped[str | None]
    state: Mapped[AutoJoinState]
    reason: Mapped[str | None]
    since: Mapped[datetime] = mapped_column(server_default=db_now())

    __table_args__ = (
        Index("ix_auto_joins_state", "state"),
        index_where("domain IS NULL", "ix_auto_joins_invalid", "state"),
    )


class WorkspaceSettings(Base):
    """Auto-join settings of a workspace, and the operator who changed them last."""

    __tablename__ = "workspace_settings"

    organization_id: Mapped[str] = mapped_column(primary_key=True)
    auto_join: Mapped[bool | None]
    """False: nobody joins by domain. None means True."""
    default_role: Mapped[str | None]
    """The local role of people who join by domain. None means `member`."""
    who: Mapped[str]
    why: Mapped[str]
    at: Mapped[datetime] = mapped_column(server_default=db_now())


class Join(Base):
    """A person who joins, or joined, the workspace that holds the domain of their verified e-mail address."""

    __tablename__ = "joins"

    organization_id: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[str] = mapped_column(primary_key=True, index=True)
    domain: Mapped[str | None]
    state: Mapped[JoinState] = mapped_column(server_default=JoinState.PENDING)
    reason: Mapped[str | None]
    cause: Mapped[Cause]
    cause_id: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=db_now())
    due_at: Mapped[datetime] = mapped_column(server_default=db_now())
    settled_at: Mapped[datetime | None]
    complete_from: Mapped[datetime | None]
    """Create nothing until every event up to this time, by WorkOS's clock, is applied: it may remove the person."""
    claim: Mapped[int] = mapped_column(server_default="0")
    """The fencing number: each worker that claims the join increments it, and may write only while it is unchanged."""
    attempts: Mapped[int] = mapped_column(server_default="0")
    attempted_at: Mapped[datetime | None]
    """WorkOS's time when it last showed no membership, before the call that creates one."""
    membership_id: Mapped[str | None]
    error: Mapped[str | None]

    __table_args__ = (
        Index("ix_joins_state", "state"),
        index_where("state IN ('pending', 'undo')", "ix_joins_open", "due_at"),
    )


class UnblockedMembership(Base):
    """An inactive or deleted membership that no longer blocks its person, by decision of an operator."""

    __tablename__ = "unblocked_memberships"

    membership_id: Mapped[str] = mapped_column(primary_key=True)
    who: Mapped[str]
    why: Mapped[str]
    at: Mapped[datetime] = mapped_column(server_default=db_now())


class UnblockedInvitation(Base):
    """An invitation that no longer blocks its person while it has this status, by decision of an operator."""

    __tablename__ = "unblocked_invitations"

    invitation_id: Mapped[str] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(primary_key=True)
    """The invitation's status when it was unblocked; empty for none. A later revocation blocks again."""
    who: Mapped[str]
    why: Mapped[str]
    at: Mapped[datetime] = mapped_column(server_default=db_now())


class JoinSearch(Base):
    """A search for the users on a domain that has begun to auto-join."""

    __tablename__ = "join_searches"

    organization_id: Mapped[str] = mapped_column(primary_key=True)
    domain: Mapped[str] = mapped_column(primary_key=True)
    created_after: Mapped[datetime | None]
    """Only users who signed up after this time; None: all."""
    after: Mapped[str] = mapped_column(server_default="")
    """The id of the last user searched."""
    cause: Mapped[Cause]
    cause_id: Mapped[str]
