"""The statements of the queue, for any database that SQLAlchemy knows."""
