"""The HTTP face: takes support sets, hands adaptation to the workers, serves predictions.

| to change | look in |
|---|---|
| routes, bodies, keys and scopes, metrics, the OpenAPI document | `http/` |
| from a request to adapt to its job | `adapting/` |
| from inputs to predictions | `predicting/` |
| the examples and predictions of a kind of task, their checks | `kinds/` |
| the commands that run a service, the embedded default | `running/` |
| what a request may hold, whatever its kind | `field_checks.py` |
| the shape of an error | `errors.py` |
| limits and defaults | `settings.py` |
"""
