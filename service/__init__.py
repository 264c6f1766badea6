"""The HTTP service. It accepts support sets, queues jobs for the workers and serves predictions.

| to change | look in |
|---|---|
| routes, request and response bodies, API keys and scopes, metrics, the OpenAPI document | `http/` |
| how a request to adapt becomes a job | `adapting/` |
| how inputs become predictions | `predicting/` |
| the fields of a task kind's examples and predictions, and their checks | `kinds/` |
| the commands that run a service, the embedded Redis server and worker | `running/` |
| checks of request fields that all task kinds share | `field_checks.py` |
| errors and the problem documents that report them | `errors.py` |
| limits and defaults | `settings.py` |
"""
