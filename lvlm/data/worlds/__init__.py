"""The built-in world: scenes of coloured shapes, what 16 languages say about them, words to read, plots,
pages of text, emoji.
Called by `python -m lvlm data NAME DIR` and by the script that trains the small backbones; nothing here imports torch.
"""
