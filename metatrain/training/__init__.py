"""The outer loop as a program: recipes, runs, search, evaluation and reports."""
