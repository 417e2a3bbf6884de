"""What a machine is, how a program is built for it and timed on it.  Imports nothing of ours."""
