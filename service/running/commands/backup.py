"""`quickstudy backup`: write everything durable of a deployment to one file.

The command accesses the records in Redis directly, not through the HTTP service.
"""

import sys
from pathlib import Path

import click
from tqdm import tqdm

from service.running.find_records import connect_to_records, exit_on_redis_error, on_data_dir
from worker.errors import InvalidBackup
from worker.ledger.backup import write_backup
from worker.ledger.servers import weights_client


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--weights", is_flag=True, help="Also copy adapter weights, which are otherwise rebuilt when they are needed.")
@on_data_dir
def backup(file: Path, weights: bool, data_dir: Path) -> None:
    """Write all records, aliases, API keys, initializations and usage to the new FILE.

    The service may run meanwhile. Encrypted values stay encrypted: keep ENCRYPTION_KEY_FILE too, elsewhere.
    """
    client, cache_url = connect_to_records(data_dir.expanduser())
    cache = weights_client(cache_url) if weights else None
    with exit_on_redis_error("no backup was written"), tqdm(unit=" entries", disable=None) as bar:
        try:
            manifest = write_backup(file, client, cache, on_progress=bar.update)
        except InvalidBackup as error:
            sys.exit(f"error: FILE: {error}")
        except OSError as error:
            sys.exit(f"error: FILE: {file}: {error.strerror}")
    more = f", weights of {manifest.weights}" if weights else ""
    click.echo(f"{file}: {manifest.records} records{more}, {file.stat().st_size} bytes")
    if manifest.left_out:
        click.echo(f"{manifest.left_out} keys of an unknown kind were left out", err=True)
