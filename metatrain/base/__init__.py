"""Frozen base models as pure functions of (delta, batch), one file a modality."""
