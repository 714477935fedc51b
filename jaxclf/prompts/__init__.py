"""What a decoder is asked: templates, examples, and the room for its answer."""
