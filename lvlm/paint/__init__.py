"""Text to image: a denoiser that reads the hidden states of a language model, its training, its pictures and their
scores. Called by `lvlm.run` and `lvlm.cli`; diffusers is imported where a denoiser is built, and not before."""
