"""Messages of the standard library (`email.message`) to envelopes.

Begin with `convert`: it checks and completes a copy, which `write` turns into octets.
"""
