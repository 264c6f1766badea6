"""`quickstudy encryption`: write encryption keys, and rewrite stored values with the current key.

`apply` accesses the records in Redis directly, not through the HTTP service.
"""

import os
import sys
from pathlib import Path

import click
from tqdm import tqdm

from service.running.find_records import connect_to_records, exit_on_redis_error, on_data_dir, read_cipher
from worker.errors import InvalidKeyFile
from worker.ledger.encryption import new_key, read_key_file
from worker.ledger.records import Records
from worker.ledger.reencryption import Reencryption
from worker.ledger.servers import weights_client

_ERASE_SECONDS = 120.0


@click.group()
def encryption() -> None:
    """Write encryption keys, and encrypt stored values with the current one."""


@encryption.command("new-key")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--append", is_flag=True, help="Add the key to the end of FILE, so that it opens values and does not encrypt yet.")
def new_key_(file: Path, append: bool) -> None:
    """Write a new key to the new FILE, which only its owner may read. Set ENCRYPTION_KEY_FILE to it.

    Keep a copy elsewhere: without the key, encrypted values are lost.
    """
    key = new_key()
    try:
        if append:
            read_key_file(file)
        flags = os.O_WRONLY | os.O_APPEND if append else os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with os.fdopen(os.open(file, flags, 0o600), "w") as opened:
            opened.write(f"\n{key.line}\n" if append else f"{key.line}\n")
    except FileExistsError:
        sys.exit(f"error: FILE: {file} exists; --append adds a key to it")
    except InvalidKeyFile as error:
        sys.exit(f"error: FILE: {error}")
    except OSError as error:
        sys.exit(f"error: FILE: {file}: {error.strerror}")
    click.echo(f"key {key.identity} is in {file}")


@encryption.command()
@on_data_dir
def apply(data_dir: Path) -> None:
    """Rewrite all stored values with the first key of ENCRYPTION_KEY_FILE, or plain if it says so.

    All services, predictors and workers must have the key and may run meanwhile. Only workers are checked: a service or predictor
    without the key cannot read the rewritten records, so upgrade and restart them first. An interrupted call can be repeated. At
    the end, Redis rewrites its append-only file, which has the earlier forms.
    """
    cipher = read_cipher()
    if not cipher.key_ids:
        sys.exit("error: ENCRYPTION_KEY_FILE: expected a file of keys, got nothing")
    client, cache_url = connect_to_records(data_dir.expanduser())
    records, cache = Records(client, cipher=cipher), weights_client(cache_url)
    with exit_on_redis_error("not everything was rewritten; repeat the command"):
        lacking = records.workers.without_key(cipher.sealing_key) if cipher.sealing_key else 0
        if lacking:
            sys.exit(
                f"error: {lacking} live workers do not have key {cipher.sealing_key}; give it to every service and worker first"
            )
        reencryption = Reencryption(client, cache, cipher)
        with tqdm(unit=" values", disable=None) as bar:
            done = reencryption.apply(on_progress=bar.update)
    form = f"encrypted with key {cipher.sealing_key}" if cipher.sealing_key else "plain"
    click.echo(f"{done.records} records and the weights of {done.weights} adapters are now {form}; {done.skipped} already were")
    with exit_on_redis_error("the append-only file was not rewritten and still has the earlier forms; repeat the command"):
        if not reencryption.erase_earlier_forms(records, _ERASE_SECONDS):
            sys.exit(f"error: the append-only file was not rewritten within {_ERASE_SECONDS:.0f} s; a worker does it later")
    click.echo("the append-only file was rewritten without the earlier forms")
