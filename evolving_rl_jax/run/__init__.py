"""What a run is: its parts, its folder, its hosts."""
