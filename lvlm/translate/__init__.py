"""Machine translation of a corpus into further languages. Called by `python -m lvlm translate`."""
