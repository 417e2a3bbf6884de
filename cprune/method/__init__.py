"""The methods: what is pruned, how far, and when it ends."""
