"""Readers of labelled examples, and the checks that keep what is evaluated out of what is trained on."""
