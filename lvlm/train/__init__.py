"""Training: batches of a plan, the loop, feature cache, checkpoints and shared stages. `lvlm.run` puts them
together."""
