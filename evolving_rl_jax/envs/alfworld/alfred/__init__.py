"""ALFRED's own trajectories as ALFWorld games: real scenes and tasks, without the simulator."""
