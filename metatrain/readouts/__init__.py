"""What turns hidden states into a loss and an answer: one file for each kind, one line each in `registry.py`."""
