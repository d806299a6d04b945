"""The programs of Debian that manage an uplink: DHCP clients, and programs that use router advertisements or PPP.

A description has shell scripts for the host. Its ``wifi0`` gets the IPv4 address from dnsmasq on the router; IPv6 is static.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.vpn.programs import end, signal


@dataclass(frozen=True, slots=True)
class Manager:
    """A program that manages ``wifi0``."""

    name: str
    needs: tuple[str, ...]
    """The executables that it needs, besides dnsmasq."""
    start: str
    renew: str
    """Renew the lease with the current address."""
    ask_anew: str
    """Ask for a lease after the server's address for this client has changed."""
    restart: str
    """Restart the program, as an update of its package does."""
    takes: tuple[int, ...] = (4,)
    """The IP versions whose address is missing for a moment during the renewal, so that replies in flight are lost."""


def lease(address: str) -> str:
    """A script for the router: dnsmasq gives this address to every client, and refuses all others."""
    return f"""
    if [ -e dnsmasq.pid ]; then {end("dnsmasq.pid")}; fi
    cat >dnsmasq.conf <<END
    port=0
    interface=wifi0
    bind-interfaces
    no-ping
    dhcp-authoritative
    dhcp-range={address},{address},255.255.255.0,1h
    dhcp-option=option:router,10.1.0.1
    dhcp-leasefile=$PWD/leases
    END
    dnsmasq --conf-file=dnsmasq.conf --user=root --pid-file=$PWD/dnsmasq.pid
    """


@dataclass(frozen=True, slots=True)
class Advertisement:
    """The router advertisement on an uplink (RFC 4861, RFC 4191)."""

    preference: str = "medium"
    lifetime: int = 1800
    """The router lifetime in seconds; 0 if it is no default router."""
    prefix: str = ""
    """The advertised prefix; ``""`` for the laboratory's."""


def advertise(wifi0: Advertisement, eth0: Advertisement) -> str:
    """A script for the router: radvd advertises this from now on."""
    interfaces = [
        f"interface {name} {{ AdvSendAdvert on; MinRtrAdvInterval 3; MaxRtrAdvInterval 4; AdvDefaultLifetime {said.lifetime};"
        f" AdvDefaultPreference {said.preference}; prefix {said.prefix or prefix} {{ }}; }};"
        for name, prefix, said in (("wifi0", "fd10:1::/64", wifi0), ("eth0", "fd10:2::/64", eth0))
    ]
    return f"""
    echo '{" ".join(interfaces)}' >radvd.conf
    if [ -e radvd.pid ]; then {signal("radvd.pid", "HUP")}; else radvd --config $PWD/radvd.conf --pidfile $PWD/radvd.pid; fi
    """


LISTEN_TO_ROUTERS = """
for name in wifi0 eth0; do
    ip -6 route flush default dev $name
    ip -6 address flush dev $name scope global
    for option in accept_ra autoconf; do echo 1 >/proc/sys/net/ipv6/conf/$name/$option; done
done
"""
"""A script for the host: delete the laboratory's IPv6 addresses and routes, and let the kernel configure its own."""

PPPOE_ADDRESS = "10.64.0.2"
"""The address that the router's access concentrator assigns to the host."""
PPPOE_SERVER = f"""
echo noauth >pppoe.options
pppoe-server -I wifi0 -L 10.64.0.1 -R {PPPOE_ADDRESS} -N 1 -O $PWD/pppoe.options
"""
PPPOE_CLIENT = "pppd pty 'pppoe -I wifi0' noauth noipdefault defaultroute updetach"

_DHCLIENT = "dhclient -4 -pf $PWD/dhclient.pid -lf $PWD/dhclient.leases wifi0"
_DHCPCD = "dhcpcd --config $PWD/dhcpcd.conf"
_NETWORKD = "/lib/systemd/systemd-networkd >>networkd.log 2>&1 & echo $! >networkd.pid"
_NETWORK_MANAGER = "NetworkManager --no-daemon --config $PWD/manager.conf >>manager.log 2>&1 & echo $! >manager.pid"


def _networkd(setting: str) -> Manager:
    """:param setting: of networkd.conf's section Network"""
    return Manager(
        "systemd-networkd",
        ("networkctl", "dbus-daemon"),
        start=f"""
        mkdir -p /run/dbus /run/systemd/network /run/systemd/networkd.conf.d
        dbus-daemon --system --fork
        for part in '' /links /leases /lldp; do install -d -o systemd-network /run/systemd/netif$part; done
        printf '[Network]\\n%s\\n' {setting} >/run/systemd/networkd.conf.d/tests.conf
        cat >/run/systemd/network/wifi0.network <<END
        [Match]
        Name=wifi0
        [Network]
        DHCP=ipv4
        LinkLocalAddressing=no
        IPv6AcceptRA=no
        Address=fd10:1::2/64
        [Route]
        Gateway=fd10:1::1
        Metric=600
        [DHCPv4]
        UseHostname=no
        RouteMetric=100
        END
        {_NETWORKD}
        """,
        renew="networkctl renew wifi0",
        ask_anew="networkctl reconfigure wifi0",
        restart=f"{end('networkd.pid')}; {_NETWORKD}",
        takes=(4, 6),
    )


MANAGERS = (
    Manager(
        "dhclient",
        ("dhclient",),
        start=_DHCLIENT,
        renew=f"{end('dhclient.pid')}; {_DHCLIENT}",
        ask_anew=f"{end('dhclient.pid')}; {_DHCLIENT}",
        restart=f"{end('dhclient.pid', 'KILL')}; {_DHCLIENT}",
    ),
    Manager(
        "dhcpcd",
        ("dhcpcd",),
        start=rf"""
        printf 'ipv4only\nmetric 100\nnohook resolv.conf\nnoarp\npersistent\n' >dhcpcd.conf
        {_DHCPCD} --waitip=4 wifi0
        """,
        renew=f"{_DHCPCD} --rebind wifi0",
        ask_anew=f"{_DHCPCD} --rebind wifi0",
        restart=f"{_DHCPCD} --exit wifi0; {_DHCPCD} --waitip=4 wifi0",
    ),
    _networkd("ManageForeignRoutingPolicyRules=no"),
    Manager(
        "NetworkManager",
        ("NetworkManager", "nmcli", "dbus-daemon"),
        start=f"""
        mkdir -p /run/dbus
        dbus-daemon --system --fork
        cat >manager.conf <<END
        [main]
        plugins=keyfile
        dns=none
        hostname-mode=none
        no-auto-default=*
        [keyfile]
        unmanaged-devices=except:interface-name:wifi0
        END
        umask 077
        cat >/etc/NetworkManager/system-connections/lease.nmconnection <<END
        [connection]
        id=lease
        type=ethernet
        interface-name=wifi0
        [ipv4]
        method=auto
        route-metric=100
        [ipv6]
        method=manual
        address1=fd10:1::2/64,fd10:1::1
        route-metric=600
        END
        {_NETWORK_MANAGER}
        until nmcli general >/dev/null 2>&1; do sleep 0.05; done
        nmcli connection up lease
        """,
        renew="nmcli device reapply wifi0",
        ask_anew="nmcli connection up lease",
        restart=f"{end('manager.pid')}; {_NETWORK_MANAGER}",
        takes=(4, 6),
    ),
)
NETWORKD_THAT_REMOVES_RULES = _networkd("ManageForeignRoutingPolicyRules=yes")
"""The default setting: whenever networkd configures an interface, it removes all rules of other programs (man networkd.conf)."""
