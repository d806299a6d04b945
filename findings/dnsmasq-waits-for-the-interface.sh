#!/usr/bin/env bash
# dnsmasq 2.90-4~deb12u2: --server=ADDRESS@INTERFACE where the interface does not exist yet.
# Guess: it refuses to start, or at least warns, as it does for --interface.
# Seen: it starts, logs "using nameserver ... (via wan9)" without a warning, and answers every query REFUSED until the interface appears;
#   from then on it works without a restart.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
debian 'dnsmasq-base=2.90-4~deb12u2'
packages dnspython==2.9.2
two_uplinks
serve "$ROUTER" "$PYTHON" dnsserver.py 10.9.0.10
start "$HOST" dnsmasq --keep-in-foreground --log-facility=- --conf-file=/dev/null --pid-file= --no-hosts --no-resolv --cache-size=0 \
    --port=5353 --server=10.9.0.10@wan9 >"$work/log" 2>&1
until_it grep -q 'using nameserver' "$work/log"
cat >"$work/ask.py" <<'PYTHON'
import dns.message
import dns.query
import dns.rcode

answer = dns.query.udp(dns.message.make_query("example.org", "A"), "127.0.0.1", port=5353, timeout=3)
print(dns.rcode.to_text(answer.rcode()))
PYTHON
ask() { host "$work/venv/bin/python" "$work/ask.py"; }
{
    grep -o 'using nameserver.*' "$work/log"
    grep -ci warning "$work/log" || true
    ask
    ip -n "$HOST" link set wan1 down
    ip -n "$HOST" link set wan1 name wan9
    ip -n "$HOST" link set wan9 up
    ip -n "$HOST" route add default via 10.2.0.1 dev wan9 metric 200
    ask
    grep asked "$work/output.0"
} >"$seen"
compare <<'SEEN'
using nameserver 10.9.0.10#53(via wan9)
0
REFUSED
NOERROR
example.org asked from 10.2.0.2
SEEN
