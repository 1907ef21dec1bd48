"""Messages of the standard library's `email` package, as input."""
