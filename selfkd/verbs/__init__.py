"""The work behind the verbs of a round: what happens where nothing is recorded yet."""
