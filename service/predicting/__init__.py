"""From inputs to predictions: batches of many adapters on one model, in this process or in one of its own."""
