#!/usr/bin/env bash
# wireguard-tools 1.0.20210914-1+b1, wireguard-go 0.0.20220316-1+b4: "wg-quick up" with a default route, then "wg-quick down".
# Guess: down undoes what up did: link, routes, rules, firewall and sysctl.
# Seen: all but net.ipv4.conf.all.src_valid_mark, which up sets to 1 and down leaves at 1, for the whole namespace.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
debian wireguard-tools=1.0.20210914-1+b1 wireguard-go=0.0.20220316-1+b4 nftables=1.0.6-2+deb12u2
needs_tun
two_uplinks
(
    umask 077
    cat >"$work/wg9.conf" <<CONF
[Interface]
PrivateKey = $(wg genkey)
Address = 10.77.0.2/32
[Peer]
PublicKey = $(wg genkey | wg pubkey)
Endpoint = 10.9.0.10:51820
AllowedIPs = 0.0.0.0/0
CONF
)
state() {
    echo "$1: rules $(ip -n "$HOST" rule | wc -l), nft tables $(host nft list tables | wc -l), wg9" \
        "$(ip -n "$HOST" -oneline link show dev wg9 2>/dev/null | wc -l), src_valid_mark $(host sysctl -n net.ipv4.conf.all.src_valid_mark)"
}
{
    state before
    WG_QUICK_USERSPACE_IMPLEMENTATION=wireguard-go host wg-quick up "$work/wg9.conf" >"$work/log" 2>&1
    state up
    host wg-quick down "$work/wg9.conf" >>"$work/log" 2>&1
    state down
} >"$seen"
compare <<'SEEN'
before: rules 3, nft tables 0, wg9 0, src_valid_mark 0
up: rules 5, nft tables 1, wg9 1, src_valid_mark 1
down: rules 3, nft tables 0, wg9 0, src_valid_mark 1
SEEN
