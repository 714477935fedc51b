"""Fine-tune language models into text classifiers on JAX."""

__version__ = "0.1.0"
