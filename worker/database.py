"""The database in the settings, and the environment that it belongs to. Reports need nothing else of a process."""

import uuid

from sqlalchemy import Connection, Engine, func, inspect, select, update
from sqlalchemy.exc import DBAPIError

from models.database import is_missing, open_engine, read_transaction, transactional, what_is_wrong
from models.revisions import why_unusable
from models.tables import MirrorState
from worker.errors import ConfigurationError
from worker.settings import Settings


def open_database(settings: Settings, pool_size: int = 5) -> Engine:
    """Return an engine on the database and schema in the settings, with up to `pool_size` connections."""
    return open_engine(settings.database_url, schema=settings.database_schema, pool_size=pool_size)


def require_migrated(engine: Engine, environment_name: str | None) -> None:
    """Raise `ConfigurationError` if this code cannot run on the database, or the database cannot be reached.

    Nor can it if the database belongs to another environment than `environment_name`.
    """
    try:
        problem = why_unusable(engine)
    except DBAPIError as error:
        saw, remedy = what_is_wrong(error)
        raise ConfigurationError(f"DATABASE_URL: {saw}; {remedy}") from error
    if problem is not None:
        raise ConfigurationError(problem)
    require_own_database(engine, environment_name)


def require_own_database(engine: Engine, environment_name: str | None) -> None:
    """Raise `ConfigurationError` if the database belongs to another environment. A new database belongs to none."""
    if is_missing(engine):
        return
    with read_transaction(engine) as tx:
        columns = inspect(tx).get_columns(MirrorState.__tablename__) if inspect(tx).has_table("mirror") else ()
        if MirrorState.environment_name.key not in {column["name"] for column in columns}:
            return  # before revision 0027, which `migrate` makes next
        owner = tx.execute(select(MirrorState.environment_name)).scalar_one_or_none()
    if owner not in (None, environment_name):
        given = f"is {environment_name}" if environment_name else "is not set"
        raise ConfigurationError(
            f"ENVIRONMENT_NAME {given}, and the database belongs to {owner}; correct ENVIRONMENT_NAME or DATABASE_URL, "
            "or rename the environment with: workos-sync migrate --rename-environment"
        )


@transactional
def record_environment(tx: Connection, environment_name: str | None, *, rename: bool = False) -> None:
    """Record that the database belongs to this environment.

    With `rename` it also gets a new id. A copy of another environment's database would otherwise be taken for that one.

    Raises:
        ConfigurationError: it belongs to another environment by now, and `rename` is not given.
    """
    own = update(MirrorState).values(environment_name=environment_name)
    if rename:
        own = own.values(database_id=uuid.uuid4().hex)
    else:
        own = own.where(func.coalesce(MirrorState.environment_name, environment_name or "") == (environment_name or ""))
    if not tx.execute(own).rowcount:
        raise ConfigurationError("ENVIRONMENT_NAME: another environment has just migrated this database")
