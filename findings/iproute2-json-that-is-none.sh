#!/usr/bin/env bash
# iproute2 6.1.0-3: "ip -json monitor" and "ip -json mptcp limits".
# Guess: -json gives JSON wherever the command has an output, for the monitor one document for each event.
# Seen: both print the same plain text as without it, and exit with status 0.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
debian iproute2=6.1.0-3
two_uplinks
{
    echo "limits: $(host ip -json mptcp limits)"
    start "$HOST" ip -json monitor route >"$work/events"
    something_happens() {
        ip -n "$HOST" route replace 192.0.2.0/24 dev wan1
        ip -n "$HOST" route delete 192.0.2.0/24
        grep -q Deleted "$work/events"
    }
    until_it something_happens
    echo "monitor: $(grep -m 1 '^192' "$work/events")"
} >"$seen"
sed -i 's/ *$//' "$seen"
compare <<'SEEN'
limits: add_addr_accepted 0 subflows 2
monitor: 192.0.2.0/24 dev wan1 scope link
SEEN
