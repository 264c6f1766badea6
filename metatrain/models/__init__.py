"""Base models as pure functions of (delta, batch): loading, checking and input encoding."""
