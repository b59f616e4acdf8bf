"""Distinguishes expected from unexpected errors, and describes any error in one line without values."""

from redis.exceptions import RedisError
from sqlalchemy.exc import DBAPIError

from models import database
from worker import redis_client
from worker.errors import WorkosSyncError, unexpected


def describe(error: BaseException) -> str:
    """Return an error in one line for logs, without values: the reason of an expected one, the place of any other."""
    if isinstance(error, RedisError):
        return f"Redis {redis_client.what_is_wrong(error)[0]}"
    if isinstance(error, database.DATABASE_ERRORS):
        return database.what_is_wrong(error)[0]
    return f"{type(error).__name__}: {error}" if isinstance(error, WorkosSyncError) else unexpected(error)


def is_expected(error: BaseException) -> bool:
    """Return whether an error is one of ours, or means that the database or Redis is unavailable."""
    if isinstance(error, DBAPIError) and error.statement is not None:
        return database.is_transient(error)
    if isinstance(error, redis_client.UnexpectedRedisError):
        return False
    return isinstance(error, (WorkosSyncError, RedisError, *database.DATABASE_ERRORS))
