#!/usr/bin/env bash
# iproute2 6.1.0-3: "ip route get ADDRESS oif wan1" where no route leaves by wan1.
# Guess: "Network is unreachable" and status 2, for IPv4 as for IPv6.
# Seen: for IPv4 a route is printed, without a gateway, status 0: the destination is taken for a neighbour on the link, as a bound socket
#   would do, which then waits for ARP. With "fibmatch" it says that there is none. IPv6 says so without it.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
debian iproute2=6.1.0-3
two_uplinks
ip -n "$HOST" route delete default dev wan1
get() {
    local answer status=0
    answer=$(ip -n "$HOST" "$@" 2>&1) || status=$?
    echo "$* -> $(head -n 1 <<<"$answer" | sed 's/ *$//') ($status)"
}
{
    get route get 192.0.2.1 oif wan1
    get route get fibmatch 192.0.2.1 oif wan1
    get -6 route get 2001:db8::1 oif wan1
} >"$seen"
compare <<'SEEN'
route get 192.0.2.1 oif wan1 -> 192.0.2.1 dev wan1 src 10.2.0.2 uid 0 (0)
route get fibmatch 192.0.2.1 oif wan1 -> RTNETLINK answers: No route to host (2)
-6 route get 2001:db8::1 oif wan1 -> RTNETLINK answers: Network is unreachable (2)
SEEN
