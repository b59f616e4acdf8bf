"""The database in the settings. Reports need nothing else of a process's services."""

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from models.database import open_engine, what_is_wrong
from models.revisions import why_unusable
from worker.errors import ConfigurationError
from worker.installation import require_own_database
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
