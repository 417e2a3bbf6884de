"""Finds the fastest program of a task and forgets nothing.  Imports `cprune.targets`."""
