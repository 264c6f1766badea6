"""Offline meta-training and the adaptation maths. Knows no Redis, no HTTP, no Celery."""
