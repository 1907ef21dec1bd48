"""Templates: messages with fields, and their compiled form for many recipients."""
