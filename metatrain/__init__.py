"""Offline meta-training and the adaptation maths. Knows no Redis, no HTTP, no Celery.

| to change | look in |
|---|---|
| data sets, episodes, readers | `tasks/` |
| base models, how texts become batches, pooling, precision | `models/` |
| LoRA and the other deltas | `deltas/` |
| prototypes, heads, inner objectives | `readouts/` |
| the inner loop, its optimizers and steps | `inner/` |
| meta-gradients, meta-learning algorithms | `meta/` |
| recipes, runs, search, evaluation | `training/` |
| files of initializations and adapters | `artifacts/` |
| many adapters in one batch, the check of an architecture | `serving/` |
"""
