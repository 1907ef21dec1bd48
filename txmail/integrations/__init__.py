"""Glue to other packages, one file each; none of them is imported before it is asked for."""
