"""The cluster that ``RAY_ADDRESS`` names, asked before Ray is, which waits for minutes and ends with a traceback."""

from __future__ import annotations

import os
import re
import socket

from orchestrator.settings.errors import UserError

HOST_AND_PORT = re.compile(r"\[?([^\[\]/]+?)\]?:(\d+)")
SECONDS = 10.0  # until a head node has to answer


def cluster_address() -> str | None:
    """The variable's value, None where it is not set; UserError where nothing answers there that could be a cluster."""
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        return None
    if address.startswith(("http://", "https://")):
        raise UserError(
            f"RAY_ADDRESS={address}: that is the address of a dashboard; name the cluster's own, as in HOST:6379, or "
            f"send the command there with submit --address {address}"
        )
    if found := HOST_AND_PORT.fullmatch(address):
        try:
            socket.create_connection((found[1], int(found[2])), SECONDS).close()
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(
                f"RAY_ADDRESS={address}: no cluster answers there ({reason}); start one with ray start --head, or "
                "unset RAY_ADDRESS for one of the command's own"
            ) from None
    return address
