"""From files to batches: records, their labels, token ids and rows of one shape."""
