"""Alembic's entry: runs the migrations on the connection that `upgrade` gives, inside its transaction."""

from alembic import context

from assistant.schema import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, transactional_ddl=False)
context.run_migrations()
