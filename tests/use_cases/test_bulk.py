"""Bulk inserts store any content, and raise SQLAlchemy's error for a duplicate."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete, select
from sqlalchemy.exc import IntegrityError

from models.bulk import insert_rows, is_any_of
from models.database import write_transaction
from models.tables import Change, PublicDomain

TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    ["\\N", "\\", '"', "{", "}", ",", "\t", "\n", "\r", "NULL", "\\.", "'"]
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=st.lists(TEXTS, min_size=1, max_size=6, unique=True), content=TEXTS)
def test_rows_with_any_content_are_stored_and_found(engine: Engine, ids: list[str], content: str) -> None:
    same = {"kind": "user", "before": None, "after": {content: [content, None]}, "cause": "event", "cause_id": content}
    with write_transaction(engine) as tx:
        tx.execute(delete(Change))
        insert_rows(tx, Change, [{**same, "object_id": id, "organization_id": None} for id in ids])
        kept = tx.execute(select(Change.__table__).order_by(Change.id)).mappings().all()
        found = tx.execute(select(Change.object_id).where(is_any_of(tx, Change.object_id, ids[1:]))).scalars().all()
    assert [row["object_id"] for row in kept] == ids
    assert all({name: row[name] for name in same} == same and row["organization_id"] is None for row in kept)
    assert sorted(found) == sorted(ids[1:])


def test_duplicate_row_is_refused(engine: Engine) -> None:
    with pytest.raises(IntegrityError), write_transaction(engine) as tx:
        insert_rows(tx, PublicDomain, [{"domain": "twice.example"}] * 2)
    with write_transaction(engine) as tx:
        insert_rows(tx, PublicDomain, [{"domain": "twice.example"}])
