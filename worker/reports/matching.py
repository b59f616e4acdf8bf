"""Conditions by which people search: parts of names and of addresses, in any case."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, SQLColumnExpression, and_, false, func, or_

from models.addresses import normalize_domain
from models.types import any_case
from worker.kinds.invitation import Invitation
from worker.kinds.user import User

ESCAPE = "/"
MAX_WORDS = 20
"""Words of a text that are searched for. Each is a condition; thousands would keep the database busy for seconds."""


def is_person(text: str) -> ColumnElement[bool]:
    """Return the condition that a user's name and address contain each word of `text`, or the address a part of it."""
    return or_(contain_words((User.first_name, User.last_name, User.email), text), has_part_of_address(User, text))


def has_part_of_address(table: type[User] | type[Invitation], text: str) -> ColumnElement[bool]:
    """Return the condition that an address contains `text`, a part with a whole domain, in any spelling."""
    local, at, host = text.rpartition("@")
    domain = normalize_domain(host)
    return table.email_normalized.contains(f"{local.lower()}{at}{domain}", autoescape=True) if domain else false()


def contain_words(columns: Sequence[SQLColumnExpression[Any]], text: str) -> ColumnElement[bool]:
    """Return the condition that each of the first `MAX_WORDS` words is in one of the columns, in any case."""
    # The columns as one text: the database converts it once for each word. No word contains the space between them.
    first, *others = (func.coalesce(column, "") for column in columns)
    joined: ColumnElement[str] = first
    for other in others:
        joined = joined + " " + other
    return and_(*(contains(joined, word) for word in text.split()[:MAX_WORDS]))


def contains(column: SQLColumnExpression[Any], text: str) -> ColumnElement[bool]:
    """Return the condition that a column contains a text in any case."""
    # Not ILIKE, for which PostgreSQL converts the text again for each row.
    if text.isascii():
        return any_case(column).like(_pattern(text.lower()), escape=ESCAPE)
    # SQLite ignores the case of ASCII letters only.
    spelled = {text, text.lower(), text.upper(), text.title()}
    return or_(*(func.lower(column).like(func.lower(_pattern(each)), escape=ESCAPE) for each in spelled))


def _pattern(text: str) -> str:
    for character in (ESCAPE, "%", "_"):
        text = text.replace(character, ESCAPE + character)
    return f"%{text}%"
