"""The job of `baseline`: `session.merge()` of the object in one event. Imports only what it needs."""

import os
from datetime import datetime
from typing import Any

from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from models.database import database_url
from worker.kinds.domain import Domain
from worker.kinds.membership import Membership
from worker.kinds.organization import Organization
from worker.kinds.user import User

MODELS: dict[str, type[Any]] = {
    "organization": Organization,
    "organization_domain": Domain,
    "organization_membership": Membership,
    "user": User,
}
TIMES = ("created_at", "updated_at")

engine = create_engine(database_url(os.environ.get("DATABASE_URL", "sqlite://")))


def handle(event: dict[str, Any]) -> None:
    """Do what one event says."""
    object_type, _, verb = event["event"].rpartition(".")
    model, data = MODELS.get(object_type), event["data"]
    if model is None or "id" not in data:
        return
    with Session(engine) as session:
        if verb == "deleted":
            if row := session.get(model, data["id"]):
                session.delete(row)
        else:
            columns = {c.name: data[c.name] for c in model.__table__.columns if c.name in data}
            session.merge(model(**columns | {name: datetime.fromisoformat(data[name]) for name in TIMES}))
        session.commit()
