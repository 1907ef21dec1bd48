"""Transports without a server: a program, a folder, a console."""
