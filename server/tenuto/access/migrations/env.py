"""What Alembic runs: the migrations, on the connection that it was given."""

from alembic import context

from tenuto.access.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # SQLite alters most things by copying the table.
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
