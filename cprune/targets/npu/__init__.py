"""A simulated accelerator of the kind of VTA: what it is, what runs on it, and how many cycles that takes."""
