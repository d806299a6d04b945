#!/usr/bin/env bash
# iproute2 6.1.0-3: wg-quick's policy rules in "ip -json rule".
# Guess: the keys are the words of the text ("suppress_prefixlength"), numbers are numbers, and "not" is true or absent.
# Seen: the key is "suppress_prefixlen"; marks and tables are strings, the mark hexadecimal, the table a name where it has one; and "not" is
#   *null* where the rule is inverted, so that rule.get("not") is false for both kinds.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
debian iproute2=6.1.0-3
two_uplinks
ip -n "$HOST" rule add pref 101 not fwmark 51820 table 51820
ip -n "$HOST" rule add pref 102 fwmark 51820/0xffff table main suppress_prefixlength 0
{
    ip -n "$HOST" rule show pref 101
    ip -n "$HOST" -json rule show pref 101
    ip -n "$HOST" rule show pref 102
    ip -n "$HOST" -json rule show pref 102
} | sed 's/[[:space:]]\+/ /g; s/ $//' >"$seen"
compare <<'SEEN'
101: not from all fwmark 0xca6c lookup 51820
[{"priority":101,"not":null,"src":"all","fwmark":"0xca6c","table":"51820"}]
102: from all fwmark 0xca6c/0xffff lookup main suppress_prefixlength 0
[{"priority":102,"src":"all","fwmark":"0xca6c","fwmask":"0xffff","table":"main","suppress_prefixlen":0}]
SEEN
