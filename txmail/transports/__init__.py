"""Transports: they carry envelopes out now. `from_url` makes one from its URL."""

from .url import from_url, from_urls, transport_from_url

__all__ = ["from_url", "from_urls", "transport_from_url"]
