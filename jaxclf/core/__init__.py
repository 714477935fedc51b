"""What everything stands on: errors and exit codes, array types, trees, whole files, logs."""
