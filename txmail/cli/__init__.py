"""The command ``txmail``. `command` has the parser; each subcommand is a module or package.

A subcommand brings ``add_parser(subparsers)``, which imports nothing but the standard library,
and ``run(arguments)``, which returns an `Exit`.
"""

from .command import main

__all__ = ["main"]
