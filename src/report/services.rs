//! Names the services that scanners commonly look for, by port. The list is built in, because /etc/services differs
//! between hosts and has names that are no longer in use.

use crate::types::Protocol;

/// The service that usually listens on `port`.
pub(super) fn name(protocol: Protocol, port: u16) -> Option<&'static str> {
    let list: &[(u16, &str)] = match protocol {
        Protocol::Tcp => &TCP,
        Protocol::Udp => &UDP,
        Protocol::Sctp => &SCTP,
        Protocol::Icmp => &ICMP,
    };
    list.iter().find(|(known, _)| *known == port).map(|(_, name)| *name)
}

const TCP: [(u16, &str); 84] = [
    (0, "hidden by a fragment"),
    (1, "tcpmux"),
    (7, "echo"),
    (9, "discard"),
    (11, "systat"),
    (15, "netstat"),
    (20, "ftp-data"),
    (21, "ftp"),
    (22, "ssh"),
    (23, "telnet"),
    (25, "smtp"),
    (43, "whois"),
    (53, "domain"),
    (79, "finger"),
    (80, "http"),
    (81, "http-alt"),
    (88, "kerberos"),
    (110, "pop3"),
    (111, "rpcbind"),
    (113, "ident"),
    (119, "nntp"),
    (135, "msrpc"),
    (139, "netbios-ssn"),
    (143, "imap"),
    (179, "bgp"),
    (389, "ldap"),
    (443, "https"),
    (445, "smb"),
    (465, "submissions"),
    (502, "modbus"),
    (512, "rexec"),
    (513, "rlogin"),
    (514, "rsh"),
    (515, "printer"),
    (548, "afp"),
    (554, "rtsp"),
    (587, "submission"),
    (631, "ipp"),
    (636, "ldaps"),
    (873, "rsync"),
    (990, "ftps"),
    (993, "imaps"),
    (995, "pop3s"),
    (1080, "socks"),
    (1433, "ms-sql"),
    (1521, "oracle"),
    (1723, "pptp"),
    (1883, "mqtt"),
    (2049, "nfs"),
    (2222, "ssh-alt"),
    (2323, "telnet-alt"),
    (2375, "docker"),
    (2376, "docker-tls"),
    (3128, "squid"),
    (3306, "mysql"),
    (3389, "rdp"),
    (4444, "metasploit"),
    (5000, "http-alt"),
    (5060, "sip"),
    (5061, "sips"),
    (5432, "postgresql"),
    (5555, "adb"),
    (5672, "amqp"),
    (5900, "vnc"),
    (5901, "vnc"),
    (5985, "winrm"),
    (5986, "winrm-tls"),
    (6000, "x11"),
    (6379, "redis"),
    (6443, "kubernetes"),
    (6667, "irc"),
    (7547, "cwmp"),
    (8000, "http-alt"),
    (8080, "http-alt"),
    (8291, "winbox"),
    (8443, "https-alt"),
    (8728, "mikrotik"),
    (8888, "http-alt"),
    (9000, "http-alt"),
    (9200, "elasticsearch"),
    (10250, "kubelet"),
    (11211, "memcached"),
    (27017, "mongodb"),
    (37777, "dvr"),
];

const UDP: [(u16, &str); 27] = [
    (0, "hidden by a fragment"),
    (7, "echo"),
    (17, "qotd"),
    (19, "chargen"),
    (53, "domain"),
    (67, "dhcp"),
    (69, "tftp"),
    (111, "rpcbind"),
    (123, "ntp"),
    (137, "netbios-ns"),
    (161, "snmp"),
    (177, "xdmcp"),
    (389, "cldap"),
    (443, "quic"),
    (500, "isakmp"),
    (514, "syslog"),
    (520, "rip"),
    (623, "ipmi"),
    (1194, "openvpn"),
    (1434, "ms-sql-m"),
    (1900, "ssdp"),
    (4500, "ipsec-nat-t"),
    (5060, "sip"),
    (5353, "mdns"),
    (5683, "coap"),
    (11211, "memcached"),
    (51820, "wireguard"),
];

const SCTP: [(u16, &str); 4] = [(2905, "m3ua"), (3868, "diameter"), (36412, "s1ap"), (38412, "ngap")];

/// Types of ICMP and ICMPv6 requests.
const ICMP: [(u16, &str); 4] = [(8, "echo"), (13, "timestamp"), (17, "address mask"), (128, "echo")];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_has_two_names() {
        for list in [&TCP[..], &UDP, &SCTP, &ICMP] {
            assert!(list.windows(2).all(|pair| pair[0].0 < pair[1].0));
        }
        assert_eq!(name(Protocol::Tcp, 23), Some("telnet"));
        assert_eq!(name(Protocol::Udp, 23), None);
    }
}
