"""Foundation models as pure functions of (delta, batch): loading and checking them, and how raw inputs become batches."""
