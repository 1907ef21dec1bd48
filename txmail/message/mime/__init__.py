"""From text and files to the octets of a message, and the last check of them."""
