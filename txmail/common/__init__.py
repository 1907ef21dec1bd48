"""Helpers for every package: protocol text, locks, logs, forks and folders. No mail."""
