"""How raw examples become rows and batches: one file for each modality."""
