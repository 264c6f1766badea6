"""Side-by-side measurements, each one command (`make bench-NAME`), results as JSON in benchmarks/results/."""
