"""The base class of all tables."""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import Index, LargeBinary, MetaData, Text, event, text
from sqlalchemy.orm import DeclarativeBase, TypeResolve

from models.types import EnumText, JsonObject, JsonValue, UtcDateTime


class Base(DeclarativeBase):
    """All tables of workos-sync."""

    metadata = MetaData(naming_convention={"ix": "ix_%(table_name)s_%(column_0_N_name)s", "pk": "pk_%(table_name)s"})
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own way to declare it
        datetime: UtcDateTime(),
        str: Text(),
        bytes: LargeBinary(),
        JsonObject: JsonValue,
        list[str]: JsonValue,
    }


@event.listens_for(Base, "resolve_type_annotation")
def _enum_column(column: TypeResolve) -> EnumText[StrEnum] | None:
    """Give columns of a `StrEnum` the type `EnumText`."""
    found = column.resolved_type
    return EnumText(found) if isinstance(found, type) and issubclass(found, StrEnum) else None


def equality_index(name: str, column: str) -> Index:
    """Return an index on text of any length, which PostgreSQL's ordinary indexes do not take."""
    return Index(name, column, postgresql_using="hash", postgresql_concurrently=True)


def index_where(condition: str, name: str, *columns: str, concurrently: bool = False) -> Index:
    """Return a partial index: it contains only the rows that meet `condition`.

    With `concurrently`, `models.migrate` creates it, without blocking writers, on a table that is already large.
    """
    where = text(condition)
    return Index(name, *columns, postgresql_where=where, sqlite_where=where, postgresql_concurrently=concurrently)
