"""Keeps environments apart: a database belongs to one environment, and the keys in a Redis to one database."""

import uuid
from contextlib import suppress
from typing import cast

from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import Connection, Engine, inspect, select, update

from models.database import is_missing, read_transaction, transactional
from models.tables import MirrorState
from worker.errors import ConfigurationError
from worker.redis_keys import redis_key

CLAIM = redis_key("database")
CLAIM_SECONDS = 15
"""A claim that the clock no longer renews ends after this time."""


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
def record(tx: Connection, environment_name: str | None, *, rename: bool = False) -> None:
    """Record that the database belongs to this environment.

    With `rename` it also gets a new id. A copy of another environment's database would otherwise be taken for that one.
    """
    id = {"database_id": uuid.uuid4().hex} if rename else {}
    tx.execute(update(MirrorState).values(environment_name=environment_name, **id))


def claim_redis(engine: Engine, redis: Redis) -> None:
    """Claim our keys in Redis for this database, for `CLAIM_SECONDS`. An unavailable Redis is left alone.

    Raises:
        ConfigurationError: another database has claimed them.
    """
    with read_transaction(engine) as tx:
        id = tx.execute(select(MirrorState.database_id)).scalar_one() or ""
    with suppress(RedisError):
        redis.set(CLAIM, id, nx=True, ex=CLAIM_SECONDS)
        owner = cast("bytes | None", redis.get(CLAIM))
        if owner not in (None, id.encode()):
            raise ConfigurationError(
                "REDIS_URL: another database uses the same keys in this Redis; give each environment an "
                f"ENVIRONMENT_NAME, or a Redis of its own (after replacing a database, wait {CLAIM_SECONDS} seconds)"
            )
        redis.expire(CLAIM, CLAIM_SECONDS)
