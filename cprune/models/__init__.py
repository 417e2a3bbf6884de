"""The model that a user brings, whatever it comes as."""
