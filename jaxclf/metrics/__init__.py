"""How good predictions are, how sure that is, and how far probabilities can be trusted."""
