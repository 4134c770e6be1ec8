"""`quantmm tracker` and `quantmm serve`: other machines to tune and to measure on."""

from __future__ import annotations

from typing import Any

import click


def host_name(context: click.Context, parameter: click.Parameter, host: Any) -> Any:
    """Refuse what cannot be the name of a host, which sockets do with errors of a codec."""
    try:
        (host or "").encode("idna")
    except UnicodeError:
        raise click.BadParameter(f"{host!r} is no host name") from None
    return host


@click.command("tracker")
@click.option(
    "--host",
    callback=host_name,
    default="127.0.0.1",
    show_default=True,
    help="Address to listen at; 0.0.0.0 is every one of this machine.",
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=9190, show_default=True, help="0 is any."
)
def tracker_command(host: str, port: int) -> None:
    """Run a tracker of TVM's RPC: servers tell it that they are there, `--rpc` asks it for some.

    It ends with Ctrl-C. Whoever reaches it reaches the servers, see `quantmm serve`.
    """
    from ..tuning.server import track

    track(host, port, click.echo)


@click.command("serve")
@click.option("--tracker", required=True, metavar="HOST:PORT", help="The tracker to tell.")
@click.option("--key", required=True, help="What machines of this kind are called there.")
@click.option(
    "--host",
    callback=host_name,
    help="Address to listen at; by default the one from which the tracker is reached.",
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, show_default=True, help="0 is any."
)
def serve_command(tracker: str, key: str, host: str | None, port: int) -> None:
    """Measure for `quantmm tune --rpc` and `quantmm bench --rpc` on other machines.

    It ends with Ctrl-C. A server executes what it is sent, and does not ask who sends it: run it
    where only those can reach it who may do anything with this account.
    """
    from ..tuning.server import serve
    from ..tuning.tracker import Address

    serve(Address.of(tracker), key, host, port, click.echo)
