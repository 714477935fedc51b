"""The papers' tables: their cells, the runs that fill them, and what these cost."""
