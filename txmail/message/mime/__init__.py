"""MIME: text, files and headers to octets, and `gate`, the last check of the octets.

Begin with `parts` and `header_write`. Nothing here knows `Message` or `Attachment`.
"""
