"""The command ``txmail``. `command` has the parser; each subcommand is a module or package.

A subcommand brings ``add_parser(subparsers)``, which imports nothing that ``import txmail`` does
not, and ``run(arguments)``, which returns its exit code: an `Exit`, or a `SysExit`.
"""

from .command import main

__all__ = ["main"]
