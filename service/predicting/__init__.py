"""Predict inputs: batches of many adapters on one base model, in this process or a separate one."""
