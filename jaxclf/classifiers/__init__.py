"""What labels texts, and how a trained one is opened."""
