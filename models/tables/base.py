"""The base class of all tables."""

from datetime import datetime

from sqlalchemy import Index, LargeBinary, MetaData, Text, text
from sqlalchemy.orm import DeclarativeBase

from models.types import JsonObject, JsonValue, UtcDateTime


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


def index_where(condition: str, name: str, *columns: str) -> Index:
    """Return a partial index: it contains only the rows that meet `condition`."""
    return Index(name, *columns, postgresql_where=text(condition), sqlite_where=text(condition))
