"""The commands that run a service and look after it. `COMMANDS` lists them for `quickstudy`, which imports one when it runs."""

from quickstudy.commands.lazy_command import LateCommand

NEEDS = "quickstudy-server[embedded]"
COMMANDS = (
    LateCommand("serve", "service.running.commands.serve", "Serve HTTP.", needs=NEEDS),
    LateCommand("worker", "service.running.commands.worker", "Run one worker on REDIS_URL.", needs=NEEDS),
    LateCommand(
        "predictor",
        "service.running.commands.predictor",
        "Run the predictor as a process of its own, on CACHE_URL (or REDIS_URL).",
        needs=NEEDS,
    ),
    LateCommand(
        "demo",
        "service.running.commands.demo",
        "Adapt to a support desk's intents and predict, next to two baselines, on an embedded service of its own.",
        needs=NEEDS,
    ),
    LateCommand("jobs", "service.running.commands.jobs", "Jobs that no worker could finish.", needs=NEEDS),
    LateCommand("keys", "service.running.commands.keys", "API keys: who may ask, as whom, for what and until when.", needs=NEEDS),
)
