"""`quickstudy status`: whether a service takes work, what it adapts from, and what has been used."""

import dataclasses

import click

from quickstudy import Client
from quickstudy.commands.service_options import Failed, as_json, asks, print_json, print_table


@click.command()
@as_json
@asks
def status(client: Client, as_json: bool) -> None:
    """Whether the service is ready, what it adapts from, and what its tenant has used; exit code 1 where it is not ready."""
    found = client.initializations()  # says why, where nobody answers or the key is none
    ready, usage = client.ready(), client.usage()
    if as_json:
        content = {"initializations": [dataclasses.asdict(init) for init in found], "usage": dataclasses.asdict(usage)}
        print_json({**dataclasses.asdict(ready), **content})
    else:
        click.echo("ready\n" if ready else "not ready\n")
        titles = ("initialization", "base model", "algorithm", "delta", "steps")
        print_table(titles, [(i.name, i.base_model, i.algorithm, i.delta.get("kind"), i.steps) for i in found])
        click.echo(f"\ntenant {usage.tenant}")
        used = {
            "MAX_ADAPTERS": usage.adapters,
            "MAX_ADAPTER_BYTES": usage.bytes,
            "MAX_EXAMPLE_BYTES": usage.example_bytes,
            "MAX_JOBS": usage.jobs,
            "MAX_ALIASES": usage.aliases,
            "MAX_REQUESTS_A_MINUTE": usage.requests_this_minute,
        }
        print_table(("", "used", "most"), [(name, own, usage.limits.get(name) or "no limit") for name, own in used.items()])
        click.echo(f"{usage.adaptations} adaptations, {usage.predictions} predictions")
    if not ready:
        raise Failed(f"the service is not ready; missing: {', '.join(ready.missing) or 'it does not say what'}")
