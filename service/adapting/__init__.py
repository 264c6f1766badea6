"""From a request to adapt to its job on record, and waiting for the job to end."""
