"""Which channels go together, which are frozen and why, and how they are cut."""
