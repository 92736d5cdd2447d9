"""Put this folder on PYTHONPATH and the process behaves as if it had no network.

Python imports ``sitecustomize`` at its start. Connections to this machine itself stay possible, because a kernel talks
to Jupyter through them.
"""

import ipaddress
import socket


class NoNetwork(OSError):
    """Somebody tried to reach another machine."""


def _refuse_others(address):
    host = address[0] if isinstance(address, tuple) else None
    if host is None or host == "localhost":  # None: a socket in the file system
        return
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local:
        raise NoNetwork(f"there is no network in this test, and something tried to reach {host}")


class _LocalSocket(socket.socket):
    def connect(self, address):
        _refuse_others(address)
        return super().connect(address)

    def connect_ex(self, address):
        _refuse_others(address)
        return super().connect_ex(address)


_lookup = socket.getaddrinfo


def _local_lookup(host, *args, **kwargs):
    if host is not None:
        _refuse_others((host.decode() if isinstance(host, bytes) else host, 0))
    return _lookup(host, *args, **kwargs)


socket.socket = _LocalSocket
socket.getaddrinfo = _local_lookup
