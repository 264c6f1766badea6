"""The commands that run and administer a service.

The command line `quickstudy` reads `COMMANDS`, and imports the module of a command only when the command runs.
"""

from quickstudy.commands.lazy_command import LateCommand

NEEDS = "quickstudy-server[embedded]"
COMMANDS = (
    LateCommand("serve", "service.running.commands.serve", "Run the HTTP service.", needs=NEEDS),
    LateCommand("worker", "service.running.commands.worker", "Run one worker on REDIS_URL.", needs=NEEDS),
    LateCommand(
        "predictor",
        "service.running.commands.predictor",
        "Run the predictor as a separate process, on REDIS_URL and CACHE_URL.",
        needs=NEEDS,
    ),
    LateCommand(
        "demo",
        "service.running.commands.demo",
        "Adapt to a support desk's intents, predict and compare with baselines, on a temporary service.",
        needs=NEEDS,
    ),
    LateCommand(
        "initializations",
        "service.running.commands.initializations",
        "List stored initializations, move names, forget unneeded ones.",
        needs=NEEDS,
    ),
    LateCommand("backup", "service.running.commands.backup", "Write all records, aliases and API keys to one file.", needs=NEEDS),
    LateCommand("restore", "service.running.commands.restore", "Check a backup, and write it to a server.", needs=NEEDS),
    LateCommand(
        "encryption",
        "service.running.commands.encryption",
        "Write encryption keys, and encrypt stored values with the current one.",
        needs=NEEDS,
    ),
    LateCommand("jobs", "service.running.commands.jobs", "List, retry and drop jobs that no worker could finish.", needs=NEEDS),
    LateCommand("keys", "service.running.commands.keys", "Create, list, rotate and revoke API keys.", needs=NEEDS),
    LateCommand("tenants", "service.running.commands.tenants", "Set, list and unset limits of single tenants.", needs=NEEDS),
    LateCommand("audit", "service.running.commands.audit", "Print who changed what, from the audit log.", needs=NEEDS),
)
