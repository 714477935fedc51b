"""Campaigns of faults against the commands; see `__main__`."""
