"""Offline meta-training and the maths of adaptation. Nothing here imports Redis, HTTP or Celery.

| to change | look in |
|---|---|
| data sets, episodes, readers | `tasks/` |
| base models, tokenizing and batching of texts, pooling, precision | `models/` |
| LoRA and the other deltas | `deltas/` |
| prototypes, heads, inner objectives | `readouts/` |
| the inner loop, its optimizers and steps | `inner/` |
| meta-gradients, meta-learning algorithms | `meta/` |
| recipes, runs, search, evaluation | `training/` |
| the files of initializations and adapters | `artifacts/` |
| batches that mix adapters, the load-time probe of an architecture | `serving/` |
"""
