"""What was measured: stored, checked, exchanged."""
