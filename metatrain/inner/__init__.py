"""The inner loop, the only one, with its optimizers and the tasks that it runs on.

Meta-training and serving call the same loop.
"""
