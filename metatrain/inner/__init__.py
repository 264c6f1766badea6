"""The inner loop, its optimizers, and the tasks that it runs on.

There is one inner loop: meta-training and serving both call it.
"""
