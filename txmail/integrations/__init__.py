"""Glue to other packages, one file for each; txmail imports a file when somebody needs it."""
