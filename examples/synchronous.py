"""Blocking sockets in threads, here those of http.client, that bypass the VPN.

Use bindsock.blocking if a library has no event loop but takes a socket; there are integrations for http.client, smtplib,
requests, urllib3 and paho. Without an event loop in the process, connections are not followed: when the interface goes, connect
again.
"""

import argparse
import http.client
from concurrent.futures import ThreadPoolExecutor

import bindsock
import bindsock.blocking

TIMEOUT = 20.0


def get(host: str, port: int, path: str) -> str:
    connection = http.client.HTTPConnection(host, port)
    connection.sock = bindsock.blocking.create_connection((host, port), TIMEOUT)
    name = bindsock.interface_of(connection.sock)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return f"{path} by {name}: {response.status} {response.read().decode(errors='replace')}"
    finally:
        connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Get pages by HTTP in threads, bypassing the VPN.")
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("path", nargs="*", default=["/"])
    arguments = parser.parse_args()
    with ThreadPoolExecutor() as pool:
        for line in pool.map(lambda path: get(arguments.host, arguments.port, path), arguments.path):
            print(line)


if __name__ == "__main__":
    main()
