"""Blocking sockets in threads, here http.client's, that leave beneath the VPN.

Use it where a library has no event loop but lets you make its socket: http.client, requests by an adapter, paho, a database.
bindsock.bind() binds once, before connect(), and follows nothing: when the interface goes, make a new socket.
"""

import argparse
import http.client
import socket
from concurrent.futures import ThreadPoolExecutor

import bindsock

TIMEOUT = 20.0


def connect(host: str, port: int) -> socket.socket:
    """As socket.create_connection(), beneath the tunnels."""
    errors: list[OSError] = []
    for family, kind, proto, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        sock = socket.socket(family, kind, proto)
        sock.settimeout(TIMEOUT)
        try:
            bindsock.bind(sock, str(address[0]))
            sock.connect(address)
        except OSError as error:
            sock.close()
            errors.append(error)
        else:
            return sock
    raise errors[0]


def get(host: str, port: int, path: str) -> str:
    connection = http.client.HTTPConnection(host, port)
    connection.sock = connect(host, port)
    name = bindsock.interface_of(connection.sock)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return f"{path} by {name}: {response.status} {response.read().decode(errors='replace')}"
    finally:
        connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Get pages by HTTP in threads, beneath the VPN.")
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("path", nargs="*", default=["/"])
    arguments = parser.parse_args()
    with ThreadPoolExecutor() as pool:
        for line in pool.map(lambda path: get(arguments.host, arguments.port, path), arguments.path):
            print(line)


if __name__ == "__main__":
    main()
