"""Models behind a server that speaks chat completions."""
