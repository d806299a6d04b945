"""The VPN programs, in every mode in which each can take the default route.

A description has shell scripts. ``serve`` runs on the VPN's server (10.8.0.10, fd10:8::10), all others on the host. Both share
one directory. Inside the tunnel, the server is 10.66.0.1 and fd66::1, the host 10.66.0.2 and fd66::2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from _pytest.mark import ParameterSet

from bindsock.testing.lab import Server
from tests.vpn.machine import missing

if TYPE_CHECKING:
    from tests.vpn.machine import Machine

SERVERS = {4: Server().ipv4, 6: Server().ipv6}
"""The servers' addresses. Unbound sockets reach them through the VPN."""


@dataclass(frozen=True, slots=True)
class Vpn:
    """A VPN program in one of its modes."""

    name: str
    needs: tuple[str, ...]
    """The executables that it needs."""
    device: str
    """The tunnel's device on the host."""
    serve: str
    up: str
    down: str
    crash: str
    restarts: Mapping[str, str] = field(default_factory=dict)
    """Events while it is up, caused by an administrator or by the program itself."""
    families: tuple[int, ...] = (4, 6)
    """The IP versions whose default route it takes."""
    ready: str = ""
    """A condition that holds once it is up, if that is not the default route by its device."""
    prepare: str = ""
    """A script that prepares the host before any traffic."""
    encapsulated: str = ""
    """The IP protocol of the VPN's packets on the uplink, if the VPN has no device."""
    kernel: tuple[str, str] = ("", "")
    """A kernel feature that it needs, and a script that fails without the feature."""

    def obstacle(self, host: Machine) -> str | None:
        """The reason why it cannot run here, ``None`` if it can."""
        lacking, test = self.kernel
        return missing(*self.needs) or (f"the kernel lacks {lacking}" if test and not host.succeeds(test) else None)

    def start(self, host: Machine) -> None:
        """Start it, and wait until it has the default route."""
        host.run(self.up)
        host.until(self.ready or " && ".join(f"ip route get {SERVERS[v]} | grep -q 'dev {self.device} '" for v in self.families))


_SERVER4, _SERVER6 = "10.8.0.10", "fd10:8::10"
_BY_WIFI = f"ip route replace {_SERVER4} via 10.1.0.1 dev wifi0; ip route replace blackhole {_SERVER4} metric 9999"
"""The black hole is for the time when the first route is gone with its uplink: otherwise the program's packets would go into its
own tunnel, without end."""
_AUTHORITY = """
openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=throw-away -keyout ca.key -out ca.pem
for end in server client; do
    openssl req -new -newkey rsa:2048 -nodes -subj /CN=$end -keyout $end.key -out $end.csr
    openssl x509 -req -in $end.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 1 -out $end.pem
done
"""


_UNTIL_IT_HAS_ENDED = "for i in $(seq 1000); do kill -0 $pid 2>/dev/null || break; sleep 0.01; done"


def signal(pid_file: str, name: str) -> str:
    """A script that sends a process a signal."""
    return f"kill -{name} $(cat {pid_file})"


def end(pid_file: str, name: str = "TERM") -> str:
    """A script that ends a process, and waits until it has ended."""
    return f"pid=$(cat {pid_file}); kill -{name} $pid; {_UNTIL_IT_HAS_ENDED}"


def _halves(verb: str, device: str, via4: str = "", via6: str = "") -> str:
    four = [f"ip route {verb} {half} {via4} dev {device}" for half in ("0.0.0.0/1", "128.0.0.0/1")]
    six = [f"ip -6 route {verb} {half} {via6} dev {device}" for half in ("::/1", "8000::/1")]
    return "; ".join([*four, *six])


def _wireguard(name: str, *options: str, endpoint: str = _SERVER4, allowed: str = "0.0.0.0/0, ::/0") -> Vpn:
    up = "WG_QUICK_USERSPACE_IMPLEMENTATION=$PWD/wireguard wg-quick up $PWD/wg0.conf"
    # wg-quick does not wait for wireguard-go, whose socket would conflict with the next one's.
    down = f"pid=$(cat wg0.pid); wg-quick down $PWD/wg0.conf; {_UNTIL_IT_HAS_ENDED}"
    address = f"[{endpoint}]" if ":" in endpoint else endpoint
    interface = "\\n".join(("PrivateKey = $(cat client.key)", "Address = 10.66.0.2/24, fd66::2/64", *options))
    peer = f"PublicKey = $(cat server.pub)\\nEndpoint = {address}:51820\\nAllowedIPs = {allowed}\\nPersistentKeepalive = 1"
    return Vpn(
        name,
        ("wg-quick", "wireguard-go", "nft", "iptables"),
        "wg0",
        serve=f"""
        umask 077
        for end in server client; do wg genkey >$end.key; wg pubkey <$end.key >$end.pub; done
        wireguard-go gate
        wg set gate listen-port 51820 private-key server.key peer $(cat client.pub) allowed-ips 10.66.0.2,fd66::2
        ip address add 10.66.0.1/24 dev gate
        ip address add fd66::1/64 dev gate
        ip link set gate up
        cat >wireguard <<'END'
        #!/bin/sh
        wireguard-go --foreground "$1" &
        echo $! >wg0.pid
        until [ -S "/run/wireguard/$1.sock" ]; do sleep 0.01; done
        END
        chmod +x wireguard
        printf "[Interface]\\n{interface}\\n[Peer]\\n{peer}\\n" >wg0.conf
        """,
        up=up,
        down=down,
        crash=signal("wg0.pid", "KILL"),
        restarts={"down and up": f"{down}; {up}", "another port": "wg set wg0 listen-port 51821"},
    )


def _kill_switch(verdict: str) -> Vpn:
    """``wg-quick`` with the kill switch of its manual: firewall rules that let packets leave only by the tunnel."""
    rule = "-I OUTPUT ! -o %%i -m mark ! --mark 51820 -m addrtype ! --dst-type LOCAL -j"
    options = [f"PostUp = {tables} {rule} {verdict}" for tables in ("iptables", "ip6tables")]
    return _wireguard(f"wg-quick-{verdict.lower()}", *options)


def _openvpn(
    name: str, serve: str, client: str, *options: str, device: str = "tun0", families: tuple[int, ...] = (4, 6), prepare: str = ""
) -> Vpn:
    """OpenVPN, restarted by each of its signals: SIGUSR1 keeps the persistent parts, SIGHUP reads the configuration again."""
    openvpn = "openvpn --cd $PWD --daemon --writepid {0}.pid --log-append {0}.log"
    up = f"{openvpn.format('openvpn')} --remote {_SERVER4} --dev {device} {client} {' '.join(options)}"
    return Vpn(
        name,
        ("openvpn", "openssl"),
        device,
        serve=f"{prepare}\n{openvpn.format('server')} --dev gate --dev-type {device[:3]} {serve}",
        up=_initialized(up),
        down=end("openvpn.pid"),
        crash=signal("openvpn.pid", "KILL"),
        restarts={f"SIG{name}": _initialized(signal("openvpn.pid", name)) for name in ("USR1", "HUP")},
        families=families,
    )


def _initialized(command: str) -> str:
    """A script that runs a command, and waits until OpenVPN logs once more that it is up."""
    count = "$(cat openvpn.log 2>/dev/null | grep -c 'Initialization Sequence Completed' || true)"
    return f"before={count}; {command}; until [ {count} -gt $before ]; do sleep 0.02; done"


def _openvpn_static(name: str, *options: str, proto: tuple[str, str] = ("udp", "udp")) -> Vpn:
    both = "--secret static.key --cipher AES-256-CBC --ping 1"
    return _openvpn(
        name,
        f"--proto {proto[0]} --ifconfig 10.66.0.1 10.66.0.2 {both}",
        f"--proto {proto[1]} --ifconfig 10.66.0.2 10.66.0.1 {both}",
        *options,
        families=(4,),
        prepare="openvpn --genkey secret static.key",
    )


def _openvpn_tls(name: str, push: str, *options: str, device: str = "tun0", prepare: str = "") -> Vpn:
    return _openvpn(
        name,
        "--server 10.66.0.0 255.255.255.0 --server-ipv6 fd66::/64 --topology subnet --dh none --keepalive 1 10"
        f" --ca ca.pem --cert server.pem --key server.key --push '{push}'",
        "--client --nobind --ca ca.pem --cert client.pem --key client.key",
        *options,
        device=device,
        prepare=f"{_AUTHORITY}{prepare}",
    )


_ROUTES_BY_RULES = f"""
cat >routes <<'END'
#!/bin/sh
for family in -4 -6; do
    ip $family route replace default dev $dev table 100
    ip $family rule delete pref 100 2>/dev/null
    ip $family rule add pref 100 lookup 100
done
ip rule delete pref 99 2>/dev/null
ip rule add pref 99 to {_SERVER4} lookup main
END
chmod +x routes
"""
_OPENVPN_RULES = _openvpn_tls(
    "openvpn-tls-rules",
    "redirect-gateway def1 ipv6",
    "--route-noexec --script-security 2 --route-up $PWD/routes",
    prepare=_ROUTES_BY_RULES,
)
"""It leaves the routes to a script. The script exempts the server by a rule for its address, without a mark."""

_FASTD = Vpn(
    "fastd",
    ("fastd",),
    "fastd0",
    serve=f"""
    for end in server client; do
        echo "secret \\"$(fastd --machine-readable --generate-key)\\";" >$end.conf
        echo 'interface "fastd0"; mode tun; method "null";' >>$end.conf
        fastd --machine-readable --show-key --config $end.conf >$end.key
    done
    echo "bind any:10000; peer \\"client\\" {{ key \\"$(cat client.key)\\"; }}" >>server.conf
    echo "peer \\"server\\" {{ key \\"$(cat server.key)\\"; remote {_SERVER4}:10000; }}" >>client.conf
    for end in server client; do echo "on up \\"sh $PWD/$end.up\\";" >>$end.conf; done
    cat >server.up <<'END'
    ip link set fastd0 up
    ip address add 10.66.0.1/24 dev fastd0
    ip address add fd66::1/64 dev fastd0
    END
    cat >client.up <<'END'
    ip link set fastd0 up
    ip address add 10.66.0.2/24 dev fastd0
    ip address add fd66::2/64 dev fastd0
    {_BY_WIFI}
    ip route add default dev fastd0 metric 50
    ip -6 route add default dev fastd0 metric 50
    END
    fastd --config server.conf >server.log 2>&1 &
    """,
    up="fastd --config client.conf --daemon --pid-file $PWD/fastd.pid --log-level info",
    down=end("fastd.pid"),
    crash=signal("fastd.pid", "KILL"),
    restarts={"SIGHUP": signal("fastd.pid", "HUP"), "SIGUSR2": signal("fastd.pid", "USR2")},
)

_OPENCONNECT = Vpn(
    "openconnect",
    ("openconnect", "ocserv", "openssl"),
    "tun0",
    serve=f"""
    {_AUTHORITY.strip().replace(chr(10), chr(10) + "    ")}
    printf 'secret\\nsecret\\n' | ocpasswd -c users user
    cat >ocserv.conf <<END
    auth = "plain[passwd=$PWD/users]"
    tcp-port = 443
    udp-port = 443
    run-as-user = root
    run-as-group = root
    socket-file = $PWD/ocserv.sock
    isolate-workers = false
    server-cert = $PWD/server.pem
    server-key = $PWD/server.key
    max-clients = 4
    max-same-clients = 4
    device = gate
    ipv4-network = 10.66.0.0/24
    ipv6-network = fd66::/64
    route = default
    keepalive = 300
    END
    ocserv --foreground --debug 1 --config ocserv.conf >server.log 2>&1 &
    until grep -q 'sec-mod initialized' server.log; do sleep 0.02; done
    """,
    up="""
    pin=$(openssl x509 -in server.pem -noout -pubkey | openssl pkey -pubin -outform der | openssl dgst -sha256 -binary | base64)
    echo secret | openconnect --background --pid-file openconnect.pid --user user --passwd-on-stdin \
        --servercert pin-sha256:$pin --interface tun0 10.8.0.10
    """,
    down=end("openconnect.pid", "INT"),
    crash=signal("openconnect.pid", "KILL"),
    restarts={"SIGUSR2": signal("openconnect.pid", "USR2")},
)

_TINC = Vpn(
    "tinc",
    ("tincd",),
    "tinc0",
    serve=f"""
    for end in server client; do
        mkdir -p $end.tinc/hosts
        printf 'Name = %s\\nInterface = tinc0\\n' $end >$end.tinc/tinc.conf
        tincd --config=$PWD/$end.tinc --generate-keys=2048 </dev/null
    done
    printf 'ConnectTo = server\\n' >>client.tinc/tinc.conf
    printf 'Address = {_SERVER4}\\nSubnet = 0.0.0.0/0\\nSubnet = ::/0\\n' >>server.tinc/hosts/server
    printf 'Subnet = 10.66.0.2/32\\nSubnet = fd66::2/128\\n' >>client.tinc/hosts/client
    cp client.tinc/hosts/client server.tinc/hosts/
    cp server.tinc/hosts/server client.tinc/hosts/
    cat >server.tinc/tinc-up <<'END'
    #!/bin/sh
    ip link set $INTERFACE up
    ip address add 10.66.0.1/24 dev $INTERFACE
    ip address add fd66::1/64 dev $INTERFACE
    END
    cat >client.tinc/tinc-up <<'END'
    #!/bin/sh
    ip link set $INTERFACE up
    ip address add 10.66.0.2/24 dev $INTERFACE
    ip address add fd66::2/64 dev $INTERFACE
    {_BY_WIFI}
    {_halves("add", "$INTERFACE")}
    END
    chmod +x *.tinc/tinc-up
    tincd --config=$PWD/server.tinc --pidfile=$PWD/server.pid --logfile=$PWD/server.log
    """,
    up="tincd --config=$PWD/client.tinc --pidfile=$PWD/tinc.pid --logfile=$PWD/tinc.log",
    down=end("tinc.pid"),
    crash=signal("tinc.pid", "KILL"),
    restarts={"SIGHUP": signal("tinc.pid", "HUP"), "SIGALRM": signal("tinc.pid", "ALRM")},
)

_EDGE = "edge -c net -k secret -l {server}:7654 -r -a {address} -d n2n0"
_N2N = Vpn(
    "n2n",
    ("edge", "supernode"),
    "n2n0",
    serve=f"supernode -l 7654 >supernode.log 2>&1 & {_EDGE.format(server='127.0.0.1', address='10.66.0.1')} >server.log 2>&1 &",
    up=f"""
    {_EDGE.format(server=_SERVER4, address="10.66.0.2")} >edge.log 2>&1 &
    echo $! >edge.pid
    until ip address show dev n2n0 2>/dev/null | grep -q 10.66.0.2; do sleep 0.02; done
    {_BY_WIFI}
    ip route add default via 10.66.0.1 dev n2n0 metric 50
    """,
    down=end("edge.pid"),
    crash=signal("edge.pid", "KILL"),
    families=(4,),
)
_ESP = (
    "ESP (CONFIG_INET_ESP)",
    "ip xfrm state add src ::1 dst ::2 proto esp spi 1 enc 'cbc(aes)' 0x00102030405060708090a0b0c0d0e0f0 && ip xfrm state flush",
)
_CONNECTIONS_ARE_TRACKED = """
nft add table inet filter
nft add chain inet filter input '{ type filter hook input priority 0; }'
nft add rule inet filter input ct state established accept
"""
"""Track connections, as any firewall does. Otherwise a redirection of new connections takes existing ones for new, too."""


def _charon(name: str, device: str, *, libipsec: bool) -> Vpn:
    """strongSwan: with the kernel's IPsec, a policy and a virtual address on the uplink, or with its own IPsec and a TUN
    device."""

    def start(*options: str) -> str:
        connection = "\\n ".join(("conn net", "keyexchange = ikev2", "authby = secret", "auto = add", *options))
        return f"""
        sed -i 's/load = .*/load = {"yes" if libipsec else "no"}/' /etc/strongswan.d/charon/kernel-libipsec.conf
        echo ': PSK "secret"' >/etc/ipsec.secrets
        printf '{connection}\\n' >/etc/ipsec.conf
        ipsec start
        until ipsec statusall | grep -q 'net:'; do sleep 0.02; done
        """

    ids = ("leftid = server", "rightid = client")
    server = (f"left = {_SERVER4}", "leftsubnet = 0.0.0.0/0", "right = %%any", "rightsourceip = 10.66.0.0/24", *ids)
    ids = ("leftid = client", "rightid = server")
    client = ("left = %%defaultroute", "leftsourceip = %%config", f"right = {_SERVER4}", "rightsubnet = 0.0.0.0/0", *ids)
    return Vpn(
        name,
        ("ipsec",),
        device,
        serve=start(*server),
        up=f"{start(*client)}\nipsec up net",
        down="ipsec stop",
        crash=signal("/run/charon.pid", "KILL"),
        restarts={"down and up": "ipsec down net; ipsec up net"},
        families=(4,),
        ready="ip route show table 220 | grep -q default",
        encapsulated="" if libipsec else "50",
        kernel=("", "") if libipsec else _ESP,
    )


def _sshuttle(method: str) -> Vpn:
    """sshuttle: it has no device and no route, but redirects all TCP connections to its own process."""
    rules = "nft list ruleset" if method == "nft" else "{ iptables-save; ip6tables-save; }"
    return Vpn(
        f"sshuttle-{method}",
        ("sshuttle", "sshd", "ssh-keygen", "nft", "iptables"),
        "",
        serve="""
        ssh-keygen -q -t ed25519 -N '' -f host.key
        ssh-keygen -q -t ed25519 -N '' -f user.key
        mkdir -p /run/sshd
        cat >sshd.conf <<END
        HostKey $PWD/host.key
        AuthorizedKeysFile $PWD/user.key.pub
        StrictModes no
        PermitRootLogin yes
        UsePAM no
        END
        /usr/sbin/sshd -f sshd.conf
        """,
        up=f"""
        {_BY_WIFI}
        sshuttle --method {method} --remote root@{_SERVER4} 0.0.0.0/0 ::/0 \\
            --ssh-cmd "ssh -i $PWD/user.key -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null" >sshuttle.log 2>&1 &
        echo $! >sshuttle.pid
        """,
        down=end("sshuttle.pid"),
        crash=signal("sshuttle.pid", "KILL"),
        prepare=_CONNECTIONS_ARE_TRACKED,
        ready=f"grep -q Connected sshuttle.log && [ $({rules} | grep -ci 'redirect.*12300') -eq 2 ]",
    )


VPNS = (
    _wireguard("wg-quick"),
    _wireguard("wg-quick-ipv6-endpoint", endpoint=_SERVER6),
    _wireguard("wg-quick-halves", f"PostUp = {_BY_WIFI}", allowed="0.0.0.0/1, 128.0.0.0/1, ::/1, 8000::/1"),
    _wireguard(
        "wg-quick-table-off",
        "Table = off",
        "FwMark = 51820",
        "PostUp = ip route add default dev %%i table 1000; ip rule add pref 100 not fwmark 51820 table 1000",
        "PostUp = ip -6 route add default dev %%i table 1000; ip -6 rule add pref 100 not fwmark 51820 table 1000",
        "PreDown = ip rule delete pref 100; ip -6 rule delete pref 100",
    ),
    _openvpn_static("openvpn-static-def1", "--redirect-gateway def1"),
    _openvpn_static("openvpn-static-tcp", "--redirect-gateway def1", proto=("tcp-server", "tcp-client")),
    _openvpn_tls("openvpn-tls", "redirect-gateway def1 ipv6"),
    _openvpn_tls("openvpn-tls-persist", "redirect-gateway def1 ipv6", "--persist-tun --persist-key"),
    _openvpn_tls("openvpn-tls-block-local", "redirect-gateway def1 ipv6 block-local"),
    _openvpn_tls("openvpn-tls-tap", "redirect-gateway def1 ipv6", device="tap0"),
    _OPENVPN_RULES,
    _OPENCONNECT,
    _TINC,
    _N2N,
    _FASTD,
    _charon("charon-libipsec", "ipsec0", libipsec=True),
)
"""The VPNs that keep the uplinks' routes."""
WITHOUT_DEVICE = (_charon("charon-policy", "", libipsec=False),)
"""The VPNs with a route by an uplink: the kernel encapsulates packets that leave by it from the VPN's address."""
REPLACING = (_openvpn_static("openvpn-static-replace", "--redirect-gateway"),)
"""The VPNs that delete the best uplink's IPv4 default route."""
KILL_SWITCHES = (_kill_switch("REJECT"), _kill_switch("DROP"))
"""The VPNs that nothing can bypass."""
REDIRECTING = (_sshuttle("nft"), _sshuttle("nat"))
"""The VPNs that change no route: a firewall rule redirects new TCP connections to them."""


def cases(vpns: tuple[Vpn, ...]) -> list[ParameterSet]:
    """The VPNs as parameters of a test."""
    return [pytest.param(v, id=v.name) for v in vpns]
