"""Meta-training as a program: recipes, runs, search, evaluation and reports."""
