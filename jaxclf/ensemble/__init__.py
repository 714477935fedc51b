"""AttEns: adapters of several tasks on one frozen base, combined for a target task."""
