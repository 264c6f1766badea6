"""The HTTP face: takes support sets, hands adaptation to the workers, serves predictions."""
