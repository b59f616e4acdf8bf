"""The message and the exit code of a command that fails."""

from http import HTTPStatus

from redis.exceptions import RedisError

from models import database
from worker import redis_client
from worker.errors import ConfigurationError, WorkOSError, WorkosSyncError


def expected(error: Exception) -> tuple[str, int] | None:
    """Return one line about an error and the exit code; None if the error is unexpected."""
    if isinstance(error, WorkOSError):
        return f"WorkOS {_unanswered(error)}", error.exit_code
    if isinstance(error, WorkosSyncError):
        return str(error), error.exit_code
    if isinstance(error, RedisError):
        saw, remedy = redis_client.what_is_wrong(error)
        return f"REDIS_URL: Redis {saw}; {remedy}", ConfigurationError.exit_code
    if isinstance(error, database.DATABASE_ERRORS):
        saw, remedy = database.what_is_wrong(error)
        return f"DATABASE_URL: {saw}; {remedy}", ConfigurationError.exit_code
    return None


def _unanswered(error: WorkOSError) -> str:
    """Return what WorkOS did, and the remedy. A 404 is an answer: the network works."""
    if error.status == HTTPStatus.NOT_FOUND:
        return f"answered 404: {error}; it does not have what the command needs. Check WORKOS_BASE_URL"
    return f"did not answer as expected: {error}; check the network, or try again later"
