"""Corpora and everything between them and a batch: the built-in worlds, readers, the mix and the plan.
Called by `lvlm.run`, by `python -m lvlm data` and by `python -m lvlm plan`; nothing here imports torch.
"""
