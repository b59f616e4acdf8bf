"""The tables. Keys are WorkOS's own ids. No foreign keys between mirrored rows: children may come before parents.

Each kind of mirrored object has its table in its own module of `worker.kinds`.
"""

from models.enums import Action, EventStatus, JoinState, RunStatus, Task, Via
from models.tables.audit import Audit, OperatorSession
from models.tables.auto_join import (
    JOIN,
    WORKSPACE_SETTINGS,
    AutoJoin,
    AutoJoinState,
    Join,
    JoinSearch,
    UnblockedInvitation,
    UnblockedMembership,
    WorkspaceSettings,
)
from models.tables.base import Base, equality_index, index_where
from models.tables.freshness import FailedEffect, Tail
from models.tables.hooks import DeliveryStatus, Hook, HookDelivery
from models.tables.inbox import Batch, Event, EventSource, FailedAttempt
from models.tables.mirror import (
    ROLE_MAP,
    AutoJoinMode,
    Cause,
    Change,
    DeletedBy,
    InvitedAddress,
    LateVersion,
    Mirrored,
    MirrorState,
    PublicDomain,
    UserAddress,
)
from models.tables.notify import Notice, NotifyTarget
from models.tables.runs import (
    Drift,
    DriftAction,
    Listing,
    ListingState,
    Phase,
    Read,
    Refresh,
    Run,
    Seen,
    Tick,
)
from models.tables.sessions import SESSIONS_REVOKED, Revocation, RevocationState, Total
