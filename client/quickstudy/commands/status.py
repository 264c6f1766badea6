"""`quickstudy status`: show a service's readiness, its initializations and the tenant's usage."""

import dataclasses

import click

from quickstudy import Client
from quickstudy.commands.one_line_errors import CommandFailed
from quickstudy.commands.service_options import as_json, print_json, print_table, with_client


@click.command()
@as_json
@with_client
def status(client: Client, as_json: bool) -> None:
    """Show whether the service is ready, its initializations and the tenant's usage.

    Exit with code 1 if the service is not ready.
    """
    # This call comes first because, unlike `ready`, it raises an error if the service is out of reach or the key is not valid.
    initializations = client.initializations()
    ready, usage = client.ready(), client.usage()
    if as_json:
        content = {"initializations": [dataclasses.asdict(init) for init in initializations], "usage": dataclasses.asdict(usage)}
        print_json({**dataclasses.asdict(ready), **content})
    else:
        click.echo("ready\n" if ready else "not ready\n")
        titles = ("initialization", "base model", "algorithm", "delta", "steps")
        print_table(titles, [(i.name, i.base_model, i.algorithm, i.delta.get("kind"), i.steps) for i in initializations])
        click.echo(f"\ntenant {usage.tenant}")
        used = {
            "MAX_ADAPTERS": usage.adapters,
            "MAX_ADAPTER_BYTES": usage.bytes,
            "MAX_EXAMPLE_BYTES": usage.example_bytes,
            "MAX_JOBS": usage.jobs,
            "MAX_ALIASES": usage.aliases,
            "MAX_REQUESTS_A_MINUTE": usage.requests_this_minute,
            "MAX_STREAMS": usage.streams,
            "MAX_TENANT_BODIES_BYTES": usage.bodies_bytes,
        }
        print_table(("", "used", "limit"), [(name, count, usage.limits.get(name) or "no limit") for name, count in used.items()])
        click.echo(f"{usage.adaptations} adaptations, {usage.predictions} predictions")
    if not ready:
        raise CommandFailed(f"the service is not ready; missing: {', '.join(ready.missing) or 'not specified'}")
