"""From a network to calls and tasks, and to a tuned model, for every command."""
