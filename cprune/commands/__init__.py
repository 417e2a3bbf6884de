"""What the commands do, as functions that know nothing of a terminal."""
