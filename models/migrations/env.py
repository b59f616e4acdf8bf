"""Alembic's entry point: runs on the connection of `models.migrate`, inside its transaction, or prints SQL."""

from alembic import context

from models.revisions import VERSIONS
from models.tables import Base

if context.is_offline_mode():
    # Without `named`, a percent sign would be printed twice.
    context.configure(
        dialect_name="postgresql",
        target_metadata=Base.metadata,
        dialect_opts={"paramstyle": "named"},
        literal_binds=True,
        version_table=VERSIONS.name,
    )
else:
    connection = context.config.attributes["connection"]
    context.configure(connection, target_metadata=Base.metadata, transactional_ddl=True, version_table=VERSIONS.name)
context.run_migrations()
