"""Checkpoints and adapters of Hugging Face's libraries, in and out."""
