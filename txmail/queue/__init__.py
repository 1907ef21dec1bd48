"""The durable queue: mail that is there if, and only if, its transaction has committed.

Needs SQLAlchemy (extra ``[queue]``). `store.Queue` is what an application sets up; `schema` has
the tables, `model` the states and what may become of what.
"""
