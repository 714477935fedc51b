"""Whole runs: training, evaluation, prompting, labelling files, comparisons, learning curves."""
