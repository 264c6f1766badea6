"""`quickstudy restore`: check a backup, and write it to a server.

The command accesses the records in Redis directly, not through the HTTP service.
"""

import sys
from pathlib import Path

import click
from tqdm import tqdm

from service.running.find_records import connect_to_records, exit_on_redis_error, on_data_dir, read_cipher
from worker.errors import InvalidBackup
from worker.ledger.restore import BackupFile, Restore
from worker.ledger.servers import weights_client

_UNDONE = (
    "what was revoked, rotated or deleted since the backup is there again; "
    "`quickstudy audit --action key.revoked --action key.rotated --action adapter.deleted` lists it"
)


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--replace", is_flag=True, help="First delete all that the server has, except for its audit log and its weights.")
@on_data_dir
def restore(file: Path, replace: bool, data_dir: Path) -> None:
    """Restore the backup FILE to a server without records, while its service runs.

    The whole file is checked before anything is written. Jobs that were unfinished at the time of the backup run again. API keys
    and adapters are those of the backup: what was revoked, rotated or deleted since then is there again.
    """
    cipher = read_cipher()
    client, cache_url = connect_to_records(data_dir.expanduser())
    with exit_on_redis_error("the backup was not restored"):
        try:
            opened = BackupFile(file, cipher)
            with tqdm(unit=" entries", desc="checking", disable=None) as bar:
                opened.check(on_progress=bar.update)
            with tqdm(unit=" entries", desc="restoring", disable=None) as bar:
                done = Restore(client, weights_client(cache_url)).restore(opened, replace=replace, on_progress=bar.update)
        except InvalidBackup as error:
            sys.exit(f"error: FILE: {error}")
    click.echo(f"{done.records} records and weights of {done.weights} restored; {done.requeued} unfinished jobs run again")
    click.echo(_UNDONE, err=True)
    if done.aliases_dropped:
        click.echo(f"{done.aliases_dropped} aliases of adapters that were deleted during the backup are gone", err=True)
