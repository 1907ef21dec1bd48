"""``txmail demo``: real transactions against real databases and a real, local mail server.

`scenarios` has what is played and promised, `stage` what it is played on, `scenario` compares what
was promised with what was measured, `plain` and `terminal` show it.
"""

from .command import add_parser, run

__all__ = ["add_parser", "run"]
