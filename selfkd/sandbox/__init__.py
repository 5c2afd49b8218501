"""Runs code that nobody vouches for: a bubblewrap sandbox (`box`), and tests in it (`testing`)."""
