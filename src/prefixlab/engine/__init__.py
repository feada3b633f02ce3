"""Tensors: models, weights, KV pool, sampler, runner, and the offline LLM. The only folder that imports torch.

Importing this package imports no torch; its files do.
"""
