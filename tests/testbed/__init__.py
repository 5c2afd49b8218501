"""A character model on addition: small enough to run whole loops for real in a test."""
