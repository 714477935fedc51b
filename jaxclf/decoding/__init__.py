"""From a decoder's outputs to labels: generated, chosen among the labels, or scored."""
