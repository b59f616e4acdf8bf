"""IP addresses, compared as addresses whatever their spelling."""

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Network = IPv4Network | IPv6Network

MAPPED = ip_network("::ffff:0:0/96")
"""IPv4-mapped IPv6 addresses (RFC 4291, section 2.5.5.2)."""
MAPPED_BITS = 96


def ip_of(text: str) -> IPv4Address | IPv6Address:
    """Return the address in `text`; raise `ValueError` if there is none.

    Proxies write addresses with a port, in brackets, in quotation marks or with a zone: `192.0.2.1:51234`,
    `"[2001:db8::1]:443"`, `fe80::1%eth0`. An IPv4-mapped address such as `::ffff:192.0.2.1` is returned as IPv4.
    """
    bare = text.strip().strip('"')
    if bracketed := re.fullmatch(r"\[([^\[\]]*)\](?::\d{1,5})?", bare):
        bare = bracketed[1]
    elif bare.count(":") == 1:
        bare = re.sub(r":\d{1,5}$", "", bare)
    address = ip_address(re.sub(r"(:.*)%.*", r"\1", bare))
    return getattr(address, "ipv4_mapped", None) or address


def network_of(text: str) -> Network:
    """Return the network in `text`, such as `192.0.2.0/24`, or of one address; raise `ValueError` if there is none."""
    if "/" not in text:
        return ip_network(ip_of(text))
    network = ip_network(text.strip())
    if isinstance(network, IPv6Network) and network.subnet_of(MAPPED):  # type: ignore[arg-type]  # MAPPED is IPv6
        mapped = network.network_address.ipv4_mapped
        return ip_network(f"{mapped}/{network.prefixlen - MAPPED_BITS}")
    return network
