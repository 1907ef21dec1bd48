"""``txmail demo``: real transactions against real databases and a real, local mail server.

`scenarios` holds the scenarios and their promises, `setup` opens the databases and the server,
`scenario` compares what was promised with what was measured, `display` shows it.
"""

from .command import add_parser, run

__all__ = ["add_parser", "run"]
