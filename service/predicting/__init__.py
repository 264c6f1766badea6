"""Predict inputs in batches that mix adapters of one base model, in this process or a separate one."""
