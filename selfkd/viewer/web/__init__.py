"""The local web page: a read-only view of a folder of runs."""
