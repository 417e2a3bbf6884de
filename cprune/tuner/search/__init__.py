"""Which program is tried next."""
