"""File layouts of other projects that trajectories are read from and written in."""
