"""Alembic's entry point: runs on the connection of `models.migrate`, inside its transaction."""

from alembic import context

from models.revisions import VERSIONS
from models.tables import Base

connection = context.config.attributes["connection"]
context.configure(connection, target_metadata=Base.metadata, transactional_ddl=True, version_table=VERSIONS.name)
context.run_migrations()
