"""The durable account of every job and adapter in Redis: records, claims, weights, aliases, keys and usage.

Nothing in this folder imports torch.
"""
