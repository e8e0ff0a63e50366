"""The tiny backbones of the built-in world: how they are built, trained and described. Called by `python -m lvlm
backbones`.
"""
