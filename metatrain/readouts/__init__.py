"""What turns hidden states into a loss and an answer."""
