"""Decoders, T5 and encoders as modules, and what their layers are made of."""
