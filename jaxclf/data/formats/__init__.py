"""How files of texts are written, one module a kind: a part of a source → raw rows."""
