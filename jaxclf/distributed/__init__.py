"""Several devices and processes: where arrays lie, who writes, how a run is stopped."""
