"""Changes of the state database's tables, one file for each; Alembic runs them in order."""
