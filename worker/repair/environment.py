"""The WorkOS environment that a database mirrors: bound on the first start; any other is refused later."""

from datetime import datetime, timedelta
from typing import TypedDict, Unpack

from redis import Redis
from sqlalchemy import Connection, Engine, select, update

from models.database import in_transaction, read_transaction
from models.tables import MirrorState
from worker.errors import ConfigurationError, WorkOSError
from worker.kinds import READERS, SUBSCRIBED
from worker.kinds.organization import ORGANIZATION, Organization
from worker.kinds.user import USER
from worker.metrics import Counters
from worker.repair.new_types import add_new_types
from worker.repair.reads import fetch
from worker.repair.resync.listings import Key
from worker.settings import Settings
from worker.workos_api.bucket import Buckets
from worker.workos_api.client import WorkOSClient, open_client

MARGIN = timedelta(minutes=5)
"""The first catch-up starts this long before the first resync, because the events API returns events with a delay."""


SANDBOX = "client_sandbox"
"""The client id of each `workos-sync sandbox`, of which `worker.sandbox` has its own copy: it imports nothing else."""


class Options(TypedDict, total=False):
    """Options of a WorkOS client (`worker.workos_api.client.open_client`)."""

    timeout_seconds: float
    max_tries: int


def connect(
    settings: Settings, redis: Redis, counters: Counters, buckets: Buckets | None = None, **options: Unpack[Options]
) -> WorkOSClient:
    """Return a WorkOS client for the settings. Its calls are counted.

    `buckets` are its rate limits, if not those that all processes share; `options` are those of `open_client`.

    Raises:
        ConfigurationError: the API key or the client id is not set.
    """
    if settings.workos_api_key is None or settings.workos_client_id is None:
        raise ConfigurationError("WORKOS_API_KEY and WORKOS_CLIENT_ID are not set")
    buckets = buckets or Buckets(redis, settings.workos_rate_share)
    key, client_id = settings.workos_api_key.get_secret_value(), settings.workos_client_id
    return open_client(key, client_id, settings.workos_base_url, buckets, counters.add, **options)


def bind(engine: Engine, workos: WorkOSClient, settings: Settings) -> None:
    """Bind the database to its WorkOS environment on the first start; refuse any other later.

    Errors are those of `require_same_environment`.
    """
    require_same_environment(engine, workos, settings)
    client_id = settings.workos_client_id or ""
    with read_transaction(engine) as tx:
        bound, backfill_from = tx.execute(select(MirrorState.client_id, MirrorState.backfill_from)).one()
    if backfill_from is None:
        in_transaction(engine, _bind, client_id, workos.now() - MARGIN)
    else:
        _require_same(bound, client_id)  # another process may have bound it meanwhile


def is_bound(engine: Engine) -> bool:
    """Return whether the database is bound: some process has, or had, an API key."""
    with read_transaction(engine) as tx:
        return tx.execute(select(MirrorState.client_id)).scalar_one() is not None


def require_same_environment(engine: Engine, workos: WorkOSClient, settings: Settings) -> None:
    """Check that the settings name the environment that this database mirrors. A new database mirrors none yet.

    Raises:
        ConfigurationError: the client id differs, or the API key sees none of the mirrored objects.
        InvalidApiKeyError: WorkOS refuses the API key.
        WorkOSError: WorkOS does not answer.
    """
    with read_transaction(engine) as tx:
        bound, known = tx.execute(select(MirrorState.client_id, MirrorState.known_organizations)).one()
    _require_same(bound, settings.workos_client_id or "")
    if known and not _sees(engine, workos, known):
        question = "is it for another environment?"
        if settings.workos_client_id == SANDBOX:
            question = "a sandbox that was started again has new ones: empty this database, or delete .workos-sync/"
        raise ConfigurationError(f"WORKOS_API_KEY: the key sees none of the organizations in this database; {question}")


def _sees(engine: Engine, workos: WorkOSClient, known: list[str]) -> bool:
    """Return whether the API key sees any mirrored object. Ids are unique across environments."""
    with read_transaction(engine) as tx:
        # Deleted organizations are 404 in every environment.
        existing = select(Organization.id).where(Organization.id.in_(known), Organization.deleted_by.is_(None))
        ids = sorted(tx.execute(existing).scalars())
    if not ids:
        return True
    unread: WorkOSError | None = None
    for id in ids:
        try:
            if fetch(workos, ORGANIZATION, id).item is not None:
                return True
        except WorkOSError as error:
            workos.now()  # raises if WorkOS is unavailable; then the others need not be tried
            unread = error
    # Perhaps all were deleted, and the events are missing. Then other organizations, or users, still exist.
    for kind, name in ((ORGANIZATION, "organizations"), (USER, "users")):
        page = Key(name, "").fetch(workos, None)
        listed = [item.get("id") for item in page.items if isinstance(item, dict)]
        with read_transaction(engine) as tx:
            if tx.execute(select(kind.table.id).where(kind.table.id.in_(listed)).limit(1)).one_or_none():
                return True
    if unread is not None:
        raise unread
    return False


def _require_same(bound: str | None, client_id: str) -> None:
    if bound not in (None, client_id):
        raise ConfigurationError(
            f"WORKOS_CLIENT_ID: this database mirrors {bound}; use another database for {client_id}"
        )


def _bind(tx: Connection, client_id: str, backfill_from: datetime) -> None:
    """Bind the database, and record the time from which to catch up after the first resync.

    Until both have finished, an empty mirror does not mean that nobody has access.
    """
    mirror = tx.execute(select(MirrorState.__table__).with_for_update()).one()
    _require_same(mirror.client_id, client_id)
    if mirror.backfill_from is None:
        first = {"client_id": client_id, "backfill_from": backfill_from, "cursor_at": backfill_from}
        tx.execute(update(MirrorState).values(event_types=SUBSCRIBED, **first))
        add_new_types(tx, (type for type, (kind, _) in READERS.items() if not kind.is_readable))  # nothing lists them
