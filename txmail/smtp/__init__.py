"""The SMTP client (RFC 5321): a core without I/O, and one blocking driver.

`replies`, `extensions`, `commands` and `content` read and write the grammar, `protocol` keeps one
connection's rules, `trouble` says what a reply means, `preflight` and `sending` are the two
conversations we have. None of them knows a socket, a clock or a thread. `stream` is the only file
with a socket, `session` drives a conversation over it, `pool` keeps sessions for the next user.
"""
