"""Takes jobs from the queue, runs the inner loop, stores adapters. Knows no HTTP.

`messages`, `records` and `store` import no torch, so that a client or a light service process can use them.
"""
