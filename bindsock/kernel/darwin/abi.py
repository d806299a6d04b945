"""Darwin's binary interface: structures, constants and ioctl numbers, as in Apple's headers.

How a name is verified depends on the list that it is in. *Public* names (``STRUCTURES``, and all that are in no list below) are
compiled against the headers of Apple's SDK by ``make abi``. Names that are public in the SDK but missing from the headers that
ziglang ships (``UNSHIPPED``) are compiled on macOS only. *Private* names (``PRIVATE``) have no public header: they are taken from
xnu's source and compared with data recorded from that kernel. File positions are those of xnu-11417.101.15; arm64 and x86_64 have
the same layout.
"""

from __future__ import annotations

from ctypes import Array, Structure, Union, c_char, c_int32, c_uint8, c_uint16, c_uint32, c_uint64, sizeof
from typing import Any

IFNAMSIZ = 16


class ifreq_union(Union):
    """The value that an ioctl puts after the name, with the members of the private headers."""

    _fields_ = (
        ("ifr_flags", c_uint16),
        ("ifr_mtu", c_uint32),
        ("ifr_delegated", c_uint32),
        ("ifr_functional_type", c_uint32),
        ("ifr_expensive", c_uint32),
        ("ifr_constrained", c_uint32),
        ("ifr_xflags", c_uint64),
        ("ifr_type", c_uint32 * 3),
        ("_bytes", c_uint8 * 16),
    )
    ifr_flags: int
    ifr_mtu: int
    ifr_delegated: int
    ifr_functional_type: int
    ifr_expensive: int
    ifr_constrained: int
    ifr_xflags: int
    ifr_type: Array[c_uint32]
    """Type, family, subfamily."""


class ifreq(Structure):
    _fields_ = (("ifr_name", c_char * IFNAMSIZ), ("ifr_ifru", ifreq_union))
    ifr_name: bytes
    ifr_ifru: ifreq_union


class rt_metrics(Structure):
    _fields_ = (
        ("rmx_locks", c_uint32),
        ("rmx_mtu", c_uint32),
        ("rmx_hopcount", c_uint32),
        ("rmx_expire", c_int32),
        ("rmx_recvpipe", c_uint32),
        ("rmx_sendpipe", c_uint32),
        ("rmx_ssthresh", c_uint32),
        ("rmx_rtt", c_uint32),
        ("rmx_rttvar", c_uint32),
        ("rmx_pksent", c_uint32),
        ("rmx_filler", c_uint32 * 4),
    )


class rt_msghdr(Structure):
    _fields_ = (
        ("rtm_msglen", c_uint16),
        ("rtm_version", c_uint8),
        ("rtm_type", c_uint8),
        ("rtm_index", c_uint16),
        ("rtm_flags", c_int32),
        ("rtm_addrs", c_int32),
        ("rtm_pid", c_int32),
        ("rtm_seq", c_int32),
        ("rtm_errno", c_int32),
        ("rtm_use", c_int32),
        ("rtm_inits", c_uint32),
        ("rtm_rmx", rt_metrics),
    )
    rtm_msglen: int
    rtm_version: int
    rtm_type: int
    rtm_index: int
    rtm_flags: int
    rtm_addrs: int
    rtm_pid: int
    rtm_seq: int
    rtm_errno: int


class rt_msghdr2(Structure):
    _fields_ = (
        ("rtm_msglen", c_uint16),
        ("rtm_version", c_uint8),
        ("rtm_type", c_uint8),
        ("rtm_index", c_uint16),
        ("rtm_flags", c_int32),
        ("rtm_addrs", c_int32),
        ("rtm_refcnt", c_int32),
        ("rtm_parentflags", c_int32),
        ("rtm_reserved", c_int32),
        ("rtm_use", c_int32),
        ("rtm_inits", c_uint32),
        ("rtm_rmx", rt_metrics),
    )
    rtm_index: int
    rtm_flags: int
    rtm_addrs: int


class timeval32(Structure):
    _fields_ = (("tv_sec", c_int32), ("tv_usec", c_int32))


_IF_DATA = (
    *((f"ifi_{name}", c_uint8) for name in ("type", "typelen", "physical", "addrlen")),
    *((f"ifi_{name}", c_uint8) for name in ("hdrlen", "recvquota", "xmitquota", "unused1")),
    ("ifi_mtu", c_uint32),
    ("ifi_metric", c_uint32),
)
_IF_COUNTERS = tuple(
    f"ifi_{name}"
    for name in (
        "baudrate",
        "ipackets",
        "ierrors",
        "opackets",
        "oerrors",
        "collisions",
        "ibytes",
        "obytes",
        "imcasts",
        "omcasts",
        "iqdrops",
        "noproto",
    )
)
_IF_TIMES = (("ifi_recvtiming", c_uint32), ("ifi_xmittiming", c_uint32), ("ifi_lastchange", timeval32))


class if_data(Structure):
    _fields_ = (
        *_IF_DATA,
        *((name, c_uint32) for name in _IF_COUNTERS),
        *_IF_TIMES,
        ("ifi_unused2", c_uint32),
        ("ifi_hwassist", c_uint32),
        ("ifi_reserved1", c_uint32),
        ("ifi_reserved2", c_uint32),
    )
    ifi_type: int
    ifi_mtu: int


class if_data64(Structure):
    _fields_ = (*_IF_DATA, *((name, c_uint64) for name in _IF_COUNTERS), *_IF_TIMES)
    ifi_type: int
    ifi_mtu: int


class if_msghdr(Structure):
    _fields_ = (
        ("ifm_msglen", c_uint16),
        ("ifm_version", c_uint8),
        ("ifm_type", c_uint8),
        ("ifm_addrs", c_int32),
        ("ifm_flags", c_int32),
        ("ifm_index", c_uint16),
        ("ifm_data", if_data),
    )
    ifm_msglen: int
    ifm_version: int
    ifm_type: int
    ifm_addrs: int
    ifm_flags: int
    ifm_index: int
    ifm_data: if_data


class if_msghdr2(Structure):
    _fields_ = (
        ("ifm_msglen", c_uint16),
        ("ifm_version", c_uint8),
        ("ifm_type", c_uint8),
        ("ifm_addrs", c_int32),
        ("ifm_flags", c_int32),
        ("ifm_index", c_uint16),
        ("ifm_snd_len", c_int32),
        ("ifm_snd_maxlen", c_int32),
        ("ifm_snd_drops", c_int32),
        ("ifm_timer", c_int32),
        ("ifm_data", if_data64),
    )
    ifm_addrs: int
    ifm_flags: int
    ifm_index: int
    ifm_data: if_data64


class ifa_msghdr(Structure):
    _fields_ = (
        ("ifam_msglen", c_uint16),
        ("ifam_version", c_uint8),
        ("ifam_type", c_uint8),
        ("ifam_addrs", c_int32),
        ("ifam_flags", c_int32),
        ("ifam_index", c_uint16),
        ("ifam_metric", c_int32),
    )
    ifam_addrs: int
    ifam_flags: int
    ifam_index: int


class ifma_msghdr(Structure):
    _fields_ = (
        ("ifmam_msglen", c_uint16),
        ("ifmam_version", c_uint8),
        ("ifmam_type", c_uint8),
        ("ifmam_addrs", c_int32),
        ("ifmam_flags", c_int32),
        ("ifmam_index", c_uint16),
    )


class sockaddr_in(Structure):
    _fields_ = (
        ("sin_len", c_uint8),
        ("sin_family", c_uint8),
        ("sin_port", c_uint16),
        ("sin_addr", c_uint8 * 4),
        ("sin_zero", c_uint8 * 8),
    )


class sockaddr_in6(Structure):
    _fields_ = (
        ("sin6_len", c_uint8),
        ("sin6_family", c_uint8),
        ("sin6_port", c_uint16),
        ("sin6_flowinfo", c_uint32),
        ("sin6_addr", c_uint8 * 16),
        ("sin6_scope_id", c_uint32),
    )


class sockaddr_dl(Structure):
    _fields_ = (
        ("sdl_len", c_uint8),
        ("sdl_family", c_uint8),
        ("sdl_index", c_uint16),
        ("sdl_type", c_uint8),
        ("sdl_nlen", c_uint8),
        ("sdl_alen", c_uint8),
        ("sdl_slen", c_uint8),
        ("sdl_data", c_uint8 * 12),
    )


class net_event_data(Structure):
    _fields_ = (("if_family", c_uint32), ("if_unit", c_uint32), ("if_name", c_char * IFNAMSIZ))
    if_family: int
    if_unit: int
    if_name: bytes
    """The interface's name without the unit number."""


class kern_event_msg(Structure):
    _fields_ = (
        ("total_size", c_uint32),
        ("vendor_code", c_uint32),
        ("kev_class", c_uint32),
        ("kev_subclass", c_uint32),
        ("id", c_uint32),
        ("event_code", c_uint32),
        ("event_data", c_uint32 * 1),
    )
    total_size: int
    vendor_code: int
    kev_class: int
    kev_subclass: int
    id: int
    event_code: int


class kev_request(Structure):
    _fields_ = (("vendor_code", c_uint32), ("kev_class", c_uint32), ("kev_subclass", c_uint32))


class in6_ifreq_union(Union):
    _fields_ = (("ifru_addr", sockaddr_in6), ("ifru_flags6", c_int32), ("_bytes", c_uint8 * 272))
    ifru_addr: sockaddr_in6
    ifru_flags6: int
    # The largest member is icmp6_ifstat: 34 counters.


class in6_ifreq(Structure):
    _fields_ = (("ifr_name", c_char * IFNAMSIZ), ("_alignment", c_uint64 * 0), ("ifr_ifru", in6_ifreq_union))
    ifr_name: bytes
    ifr_ifru: in6_ifreq_union


class tcp_connection_info(Structure):
    _fields_ = (
        ("tcpi_state", c_uint8),
        ("tcpi_snd_wscale", c_uint8),
        ("tcpi_rcv_wscale", c_uint8),
        ("_pad", c_uint8),
        ("tcpi_options", c_uint32),
        ("tcpi_flags", c_uint32),
        ("tcpi_rto", c_uint32),
        ("tcpi_maxseg", c_uint32),
        ("tcpi_snd_ssthresh", c_uint32),
        ("tcpi_snd_cwnd", c_uint32),
        ("tcpi_snd_wnd", c_uint32),
        ("tcpi_snd_sbbytes", c_uint32),
        ("tcpi_rcv_wnd", c_uint32),
        ("tcpi_rttcur", c_uint32),
        ("tcpi_srtt", c_uint32),
        ("tcpi_rttvar", c_uint32),
        ("_tfo", c_uint32),
        ("tcpi_txpackets", c_uint64),
        ("tcpi_txbytes", c_uint64),
        ("tcpi_txretransmitbytes", c_uint64),
        ("tcpi_rxpackets", c_uint64),
        ("tcpi_rxbytes", c_uint64),
        ("tcpi_rxoutoforderbytes", c_uint64),
        ("tcpi_txretransmitpackets", c_uint64),
    )
    tcpi_txbytes: int
    tcpi_rxbytes: int


# bsd/sys/ioccom.h

IOCPARM_MASK = 0x1FFF
IOC_OUT = 0x40000000
IOC_IN = 0x80000000
IOC_INOUT = IOC_IN | IOC_OUT


def _IOC(inout: int, group: str, num: int, length: int) -> int:
    return inout | (length & IOCPARM_MASK) << 16 | ord(group) << 8 | num


def _IOW(group: str, num: int, structure: Any) -> int:
    return _IOC(IOC_IN, group, num, sizeof(structure))


def _IOWR(group: str, num: int, structure: Any) -> int:
    return _IOC(IOC_INOUT, group, num, sizeof(structure))


SIOCGIFFLAGS = _IOWR("i", 17, ifreq)
SIOCGIFMTU = _IOWR("i", 51, ifreq)
SIOCGIFAFLAG_IN6 = _IOWR("i", 73, in6_ifreq)
SIOCGIFDELEGATE = _IOWR("i", 157, ifreq)
SIOCGIFTYPE = _IOWR("i", 159, ifreq)
SIOCGIFEXPENSIVE = _IOWR("i", 160, ifreq)
SIOCGIFFUNCTIONALTYPE = _IOWR("i", 173, ifreq)
SIOCGIFCONSTRAINED = _IOWR("i", 204, ifreq)
SIOCGIFXFLAGS = _IOWR("i", 206, ifreq)
SIOCSKEVFILT = _IOW("e", 2, kev_request)

AF_INET = 2
AF_ROUTE = 17
AF_LINK = 18
AF_INET6 = 30
AF_SYSTEM = 32
SOCK_STREAM = 1
SOCK_DGRAM = 2
SOCK_RAW = 3
SYSPROTO_EVENT = 1

IPPROTO_IP = 0
IPPROTO_TCP = 6
IPPROTO_IPV6 = 41
SOL_SOCKET = 0xFFFF

IP_BOUND_IF = 25
IP_OUT_IF = 9696
IPV6_BOUND_IF = 125
IPV6_OUT_IF = 9696
SO_KEEPALIVE = 0x8
SO_RCVBUF = 0x1002
SO_NOADDRERR = 0x1023
TCP_KEEPALIVE = 0x10
TCP_RXT_CONNDROPTIME = 0x80
TCP_KEEPINTVL = 0x101
TCP_KEEPCNT = 0x102
TCP_CONNECTION_INFO = 0x106

IFF_UP = 0x1
IFF_LOOPBACK = 0x8
IFF_POINTOPOINT = 0x10
IFF_RUNNING = 0x40
IFXF_IS_VPN = 0x10000

IFT_OTHER = 0x1
IFT_ETHER = 0x6
IFT_PPP = 0x17
IFT_LOOP = 0x18
IFT_BRIDGE = 0xD1
IFT_CELLULAR = 0xFF

IFRTYPE_FUNCTIONAL_UNKNOWN = 0
IFRTYPE_FUNCTIONAL_LOOPBACK = 1
IFRTYPE_FUNCTIONAL_WIRED = 2
IFRTYPE_FUNCTIONAL_WIFI_INFRA = 3
IFRTYPE_FUNCTIONAL_WIFI_AWDL = 4
IFRTYPE_FUNCTIONAL_CELLULAR = 5
IFRTYPE_FUNCTIONAL_INTCOPROC = 6
IFRTYPE_FUNCTIONAL_COMPANIONLINK = 7
IFRTYPE_FUNCTIONAL_MANAGEMENT = 8

IFRTYPE_FAMILY_LOOPBACK = 1
IFRTYPE_FAMILY_ETHERNET = 2
IFRTYPE_FAMILY_TUN = 4
IFRTYPE_FAMILY_PPP = 6
IFRTYPE_FAMILY_GIF = 10
IFRTYPE_FAMILY_STF = 12
IFRTYPE_FAMILY_CELLULAR = 15
IFRTYPE_FAMILY_UTUN = 17
IFRTYPE_FAMILY_IPSEC = 18
IFRTYPE_SUBFAMILY_REDIRECT = 11

IN6_IFF_TENTATIVE = 0x0002
IN6_IFF_DUPLICATED = 0x0004
IN6_IFF_DEPRECATED = 0x0010
IN6_IFF_TEMPORARY = 0x0080

CTL_NET = 4
NET_RT_DUMP = 1
NET_RT_IFLIST2 = 6
NET_RT_DUMP2 = 7

RTM_VERSION = 5
RTM_ADD = 0x1
RTM_DELETE = 0x2
RTM_CHANGE = 0x3
RTM_GET = 0x4
RTM_MISS = 0x7
RTM_NEWADDR = 0xC
RTM_DELADDR = 0xD
RTM_IFINFO = 0xE
RTM_NEWMADDR = 0xF
RTM_DELMADDR = 0x10
RTM_GET_SILENT = 0x11
RTM_IFINFO2 = 0x12
RTM_GET2 = 0x14

RTF_UP = 0x1
RTF_GATEWAY = 0x2
RTF_HOST = 0x4
RTF_REJECT = 0x8
RTF_DONE = 0x40
RTF_CLONING = 0x100
RTF_LLINFO = 0x400
RTF_STATIC = 0x800
RTF_BLACKHOLE = 0x1000
RTF_PRCLONING = 0x10000
RTF_WASCLONED = 0x20000
RTF_LOCAL = 0x200000
RTF_BROADCAST = 0x400000
RTF_MULTICAST = 0x800000
RTF_IFSCOPE = 0x1000000
RTF_CONDEMNED = 0x2000000
RTF_DEAD = 0x20000000
RTF_GLOBAL = 0x40000000

RTA_DST = 0x1
RTA_GATEWAY = 0x2
RTA_NETMASK = 0x4
RTA_GENMASK = 0x8
RTA_IFP = 0x10
RTA_IFA = 0x20
RTA_AUTHOR = 0x40
RTA_BRD = 0x80

KEV_VENDOR_APPLE = 1
KEV_NETWORK_CLASS = 1
KEV_INET_SUBCLASS = 1
KEV_DL_SUBCLASS = 2
KEV_INET6_SUBCLASS = 6
KEV_ND6_SUBCLASS = 7
KEV_MSG_HEADER_SIZE = 24

KEV_DL_SIFFLAGS = 1
KEV_DL_SIFMTU = 3
KEV_DL_IF_ATTACHED = 9
KEV_DL_IF_DETACHING = 10
KEV_DL_IF_DETACHED = 11
KEV_DL_LINK_OFF = 12
KEV_DL_LINK_ON = 13
KEV_DL_PROTO_ATTACHED = 14
KEV_DL_PROTO_DETACHED = 15
KEV_DL_LINK_ADDRESS_CHANGED = 16
KEV_DL_IFCAP_CHANGED = 19
KEV_DL_LINK_QUALITY_METRIC_CHANGED = 20
KEV_DL_PRIMARY_ELECTED = 23
KEV_DL_IFDELEGATE_CHANGED = 25
KEV_INET_NEW_ADDR = 1
KEV_INET_CHANGED_ADDR = 2
KEV_INET_ADDR_DELETED = 3
KEV_INET_SIFNETMASK = 6
KEV_INET6_NEW_USER_ADDR = 1
KEV_INET6_CHANGED_ADDR = 2
KEV_INET6_ADDR_DELETED = 3
KEV_INET6_NEW_LL_ADDR = 4
KEV_INET6_NEW_RTADV_ADDR = 5
KEV_INET6_DEFROUTER = 6
KEV_ND6_RA = 1
KEV_ND6_NDFAILURE = 2
KEV_ND6_NDALIVE = 3

EPERM = 1
ESRCH = 3
ENXIO = 6
EBADF = 9
ENOMEM = 12
EACCES = 13
EFAULT = 14
EEXIST = 17
EINVAL = 22
ENFILE = 23
EMFILE = 24
EPIPE = 32
EAGAIN = 35
EINPROGRESS = 36
ENOPROTOOPT = 42
EPROTONOSUPPORT = 43
ENOTSUP = 45
EAFNOSUPPORT = 47
EADDRNOTAVAIL = 49
ENETDOWN = 50
ENETUNREACH = 51
ENOBUFS = 55
EISCONN = 56
ENOTCONN = 57
EHOSTUNREACH = 65
EOPNOTSUPP = 102
"""Darwin's error numbers. Those in :mod:`errno` are the numbers of the machine that runs this, which need not be a Mac: a
recorded or simulated Darwin kernel may run on any system."""

STRUCTURES: tuple[type[Structure], ...] = (
    ifreq,
    rt_metrics,
    rt_msghdr,
    rt_msghdr2,
    if_data,
    if_data64,
    if_msghdr,
    if_msghdr2,
    ifa_msghdr,
    ifma_msghdr,
    sockaddr_in,
    sockaddr_in6,
    sockaddr_dl,
    net_event_data,
    tcp_connection_info,
    kern_event_msg,
    kev_request,
    in6_ifreq,
)

UNSHIPPED = {
    "kern_event_msg": "sys/kern_event.h",
    "kev_request": "sys/kern_event.h",
    "SIOCSKEVFILT": "sys/kern_event.h",
    "KEV_VENDOR_APPLE": "sys/kern_event.h",
    "KEV_NETWORK_CLASS": "sys/kern_event.h",
    "KEV_MSG_HEADER_SIZE": "sys/kern_event.h",
    "SYSPROTO_EVENT": "sys/sys_domain.h",
    "in6_ifreq": "netinet6/in6_var.h",
    "SIOCGIFAFLAG_IN6": "netinet6/in6_var.h",
    "IN6_IFF_TENTATIVE": "netinet6/in6_var.h",
    "IN6_IFF_DUPLICATED": "netinet6/in6_var.h",
    "IN6_IFF_DEPRECATED": "netinet6/in6_var.h",
    "IN6_IFF_TEMPORARY": "netinet6/in6_var.h",
}
"""Names that are public in Apple's SDK, with their header, but missing from the headers that ziglang ships."""

PRIVATE = {
    "SIOCGIFDELEGATE": "bsd/sys/sockio_private.h:178",
    "SIOCGIFTYPE": "bsd/sys/sockio_private.h:180",
    "SIOCGIFEXPENSIVE": "bsd/sys/sockio_private.h:181",
    "SIOCGIFCONSTRAINED": "bsd/sys/sockio_private.h:257",
    "SIOCGIFXFLAGS": "bsd/sys/sockio_private.h:260",
    "IFXF_IS_VPN": "bsd/net/if_private.h:160, macOS 15",
    "IFRTYPE_FAMILY_LOOPBACK": "bsd/net/if_private.h:252",
    "IFRTYPE_FAMILY_ETHERNET": "bsd/net/if_private.h:253",
    "IFRTYPE_FAMILY_TUN": "bsd/net/if_private.h:255",
    "IFRTYPE_FAMILY_PPP": "bsd/net/if_private.h:257",
    "IFRTYPE_FAMILY_GIF": "bsd/net/if_private.h:261",
    "IFRTYPE_FAMILY_STF": "bsd/net/if_private.h:263",
    "IFRTYPE_FAMILY_CELLULAR": "bsd/net/if_private.h:266",
    "IFRTYPE_FAMILY_UTUN": "bsd/net/if_private.h:268",
    "IFRTYPE_FAMILY_IPSEC": "bsd/net/if_private.h:269",
    "IFRTYPE_SUBFAMILY_REDIRECT": "bsd/net/if_private.h:282",
    "IP_OUT_IF": "bsd/netinet/in_private.h:120",
    "IPV6_OUT_IF": "bsd/netinet6/in6_private.h:167",
    "RTM_GET_SILENT": "bsd/net/route_private.h:329",
    "KEV_ND6_SUBCLASS": "bsd/net/net_kev.h, under PRIVATE",
    "KEV_ND6_RA": "bsd/net/net_kev.h, under PRIVATE",
    "KEV_ND6_NDFAILURE": "bsd/net/net_kev.h, under PRIVATE",
    "KEV_ND6_NDALIVE": "bsd/net/net_kev.h, under PRIVATE",
}
"""Names without a public header, with their place in xnu's source. Recorded data verifies them."""
