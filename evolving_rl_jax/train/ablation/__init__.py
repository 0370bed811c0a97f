"""Every arm with every seed."""
