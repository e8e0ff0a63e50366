"""The model and everything between an image or a text and its logits: tower, tiling, adapter, chat, processor,
checkpoints. Called by `lvlm.train`, `lvlm.evaluate`, `lvlm.run` and by users through `lvlm.load` and transformers'
Auto classes.
"""
