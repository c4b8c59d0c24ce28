"""How the commands print tables."""

import os

from rich.console import Console
from rich.table import Table

# Into a file or a pipe nothing is folded that a program may read by lines.
PIPE_COLUMNS = 200


def print_table(table: Table) -> None:
    Console(width=None if os.isatty(1) else PIPE_COLUMNS).print(table)
