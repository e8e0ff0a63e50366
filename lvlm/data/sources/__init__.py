"""Data sets in the forms in which others distribute them, made into corpora: one module a form. Called by
`python -m lvlm corpus`."""
