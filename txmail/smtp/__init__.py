"""The SMTP client (RFC 5321): a core without I/O, and one blocking driver.

The core knows no socket, clock or thread:

- `commands`, `replies`, `extensions`, `auth` and `dot_stuffing` write and read the grammar;
- `protocol` keeps the rules of one connection;
- `failure_policy` says what one reply means, `evidence` whose fault it is, and `reconnect_policy`
  whether a fresh connection is asked once more;
- `opening`, `preflight` and `sending` are the three conversations. `transaction_plan` says which
  mail transaction is next; `transaction_sending` sends one at a time, `stream_sending` many.

`driver` runs a conversation over a `stream`. `connection` is one connection from its greeting to
its end; `session` sends over one, and renews it; `session_group` sends over several; `pool` keeps
sessions for the next user.

Three files have sockets: `stream` reads and writes one, `happy_eyeballs` opens it, and `resolver`
looks up the addresses for that.
"""
