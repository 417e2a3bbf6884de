"""What a run leaves: its folder, its journal, its report."""
