"""Losses, the optimizer and the step that is compiled."""
