#!/usr/bin/env bash
# OpenVPN 2.6.14-0+deb12u2: --redirect-gateway def1 ipv6.
# Guess: what def1 does for IPv4: two halves, ::/1 and 8000::/1, beside the untouched default.
# Seen: ::/3, 2000::/4, 3000::/4 and fc00::/7. A test for "two routes of length 1" does not find them,
#   and the rest (4000:: to fbff::, unassigned today) keeps the old default.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
debian openvpn=2.6.14-0+deb12u2
needs_tun
two_uplinks
openvpn --genkey secret "$work/key" >/dev/null 2>&1
vpn=(openvpn --dev tun0 --secret "$work/key" --cipher AES-256-CBC --port 1194)
start "$ROUTER" "${vpn[@]}" --local 10.9.0.10 --ifconfig 10.66.0.1 10.66.0.2 --ifconfig-ipv6 fd66::1/64 fd66::2 >"$work/server" 2>&1
start "$HOST" "${vpn[@]}" --remote 10.9.0.10 --ifconfig 10.66.0.2 10.66.0.1 --ifconfig-ipv6 fd66::2/64 fd66::1 \
    --redirect-gateway def1 ipv6 >"$work/client" 2>&1
until_it grep -q 'Initialization Sequence Completed' "$work/client"
{
    ip -n "$HOST" -4 route show dev tun0 | grep via
    ip -n "$HOST" -6 route show dev tun0 | grep -v -e ^fe80 -e ^fd66
} | cut -d' ' -f1 | sort >"$seen"
compare <<'SEEN'
0.0.0.0/1
128.0.0.0/1
2000::/4
3000::/4
::/3
fc00::/7
SEEN
