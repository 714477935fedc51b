"""Few trained parameters beside a frozen model."""
