"""A DNS server for the findings: says who asked, and answers every question of type A with 192.0.2.1.

Usage: dnsserver.py ADDRESS
"""

import socket
import sys

with socket.socket(type=socket.SOCK_DGRAM) as server:
    server.bind((sys.argv[1], 53))
    print("ready", flush=True)
    while True:
        query, client = server.recvfrom(2000)
        end = query.index(b"\0", 12) + 5
        labels, position = [], 12
        while length := query[position]:
            labels.append(query[position + 1 : position + 1 + length].decode())
            position += 1 + length
        print(".".join(labels), "asked from", client[0], flush=True)
        header = query[:2] + b"\x81\x80\x00\x01\x00\x01\x00\x00\x00\x00"
        answer = b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x05\x00\x04\xc0\x00\x02\x01"
        server.sendto(header + query[12:end] + answer, client)
