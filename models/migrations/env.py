"""Alembic's entry: runs on the connection that `models.migrate` hands over, inside its transaction."""

from alembic import context

from models.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    transactional_ddl=True,
)
context.run_migrations()
