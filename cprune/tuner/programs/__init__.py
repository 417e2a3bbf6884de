"""What a task computes, and the programs that compute it."""
