//! Defines the ports that are monitored by default, and the named port lists of classic PortSentry. TCP and UDP have
//! different lists.

use crate::types::PortSet;

/// The lists of one protocol, as the text that the documentation and the example also contain.
pub(super) struct Lists {
    pub(super) bare_bones: &'static str,
    pub(super) aware: &'static str,
    pub(super) everything: &'static str,
    pub(super) advanced: &'static str,
    pub(super) advanced_exclude: &'static str,
}

impl Lists {
    pub(super) fn get(&self, name: &str) -> Option<PortSet> {
        match name {
            "bare-bones" => Some(set(self.bare_bones)),
            "aware" => Some(set(self.aware)),
            "everything" => Some(set(self.everything)),
            _ => None,
        }
    }
}

/// Parses one of the lists of this file.
pub(super) fn set(list: &'static str) -> PortSet {
    // The tests parse every list. A list that cannot be parsed would be empty here, and nothing would be monitored.
    list.parse().unwrap_or_default()
}

/// `advanced` contains the ports 1 to 1024, which are assigned to services, and ports above 1024 that scanners try.
/// nmap tries 1025, 1720 and several of the following first. Scanners of the whole Internet try proxies (1080, 3128,
/// 8000-8888), databases and caches without a password (1433, 1521, 3306, 5432, 6379, 9200, 11211, 27017), remote
/// desktops and administration (3389, 4899, 5900-5901, 5985-5986, 10000), containers (2375-2376, 6443, 10250), routers
/// and IoT devices (1723, 1883, 2000, 2323, 5555, 7547, 8291, 8728, 9100), telephony (5038, 5060), Java servers (7001,
/// 8009, 8088), NFS (2049), and old and new back doors (4444, 6667, 12345, 31337). All are below 32768: Linux takes the
/// ports of its own outgoing connections from there on, and late answers would look like probes.
///
/// `advanced_exclude`: mail and IRC servers query ident (113) on each client, and Windows neighbours try
/// NetBIOS sessions (139) on every host.
pub(super) const TCP: Lists = Lists {
    bare_bones: "1,11,15,110,111,143,540,635,1080,1524,2000,12345,12346,20034,32771,32772,32773,32774,49724,54320",
    aware: "1,11,15,79,111,119,143,540,635,1080,1524,2000,5742,6667,12345,12346,20034,27665,31337,32771,32772,32773,\
            32774,40421,49724,54320",
    everything: "1,7,9,11,15,70,79,80,109,110,111,119,138,139,143,512,513,514,515,540,635,1080,1524,2000,2001,4000,4001,\
                 5742,6000,6001,6667,12345,12346,20034,27665,30303,32771,32772,32773,32774,31337,40421,40425,49724,54320",
    advanced: "1-1025,1080,1433,1521,1720,1723,1883,2000,2049,2323,2375-2376,3128,3306,3389,4444,4899,5000,5038,5060,5432,\
               5555,5900-5901,5985-5986,6379,6443,6667,7001,7547,8000,8008-8009,8080-8081,8088,8291,8443,8728,8888,9000,\
               9090,9100,9200,10000,10250,11211,12345,27017,31337",
    advanced_exclude: "113,139",
};

/// `advanced` contains the ports 1 to 1024, and ports above 1024 that scanners try: amplifiers (1434, 1900, 3283, 3702,
/// 5351, 5353, 5683, 10001, 11211, 27015, 27960), tunnels and RADIUS (1194, 1701, 1812, 4500), telephony (2427, 3478,
/// 5060), NFS (2049), and devices and back doors (17185, 20031, 27444, 30718, 31335, 31337).
///
/// `advanced_exclude`: DHCP to servers (67) and to clients, which often read it without a socket in the kernel's table
/// (68, 546), NetBIOS broadcasts (137, 138) and RIP (520). NTP (123) is not excluded: the flow distinguishes answers to
/// the host's own queries from probes, and NTP is one of the most popular amplifiers.
pub(super) const UDP: Lists = Lists {
    bare_bones: "1,7,9,69,161,162,513,640,700,32770,32771,32772,32773,32774,31337,54321",
    aware: "1,7,9,69,161,162,513,635,640,641,700,37444,34555,31335,32770,32771,32772,32773,32774,31337,54321",
    everything: "1,7,9,66,67,68,69,111,137,138,161,162,474,513,517,518,635,640,641,666,700,2049,31335,27444,34555,32770,\
                 32771,32772,32773,32774,31337,54321",
    advanced: "1-1024,1194,1434,1604,1701,1812,1900,2049,2427,3283,3478,3702,4500,5060,5351,5353,5683,10001,11211,17185,\
               20031,27015,27444,27960,30718,31335,31337",
    advanced_exclude: "67,68,137,138,520,546",
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_lists_have_promised_lengths() {
        for lists in [TCP, UDP] {
            for list in [lists.bare_bones, lists.aware, lists.everything] {
                let ports: PortSet = list.parse().unwrap();
                assert_eq!(usize::try_from(ports.len()).unwrap(), list.split(',').count(), "{list}");
            }
            assert_eq!(set(lists.advanced).to_string(), lists.advanced, "the list is in its shortest form");
            assert_eq!(set(lists.advanced_exclude).len() as usize, lists.advanced_exclude.split(',').count());
        }
    }

    #[test]
    fn advanced_ports_avoid_ephemeral_range() {
        for lists in [TCP, UDP] {
            let ports = set(lists.advanced);
            assert!(ports.iter().all(|port| port < 32_768));
            assert!(ports.contains(1) && ports.contains(1024) && ports.contains(31_337));
            // A BPF filter with more than about 200 ranges takes long to compile.
            assert!(ports.ranges().len() < 100, "{}", ports.ranges().len());
        }
    }

    #[test]
    fn port_list_has_classic_name() {
        assert_eq!(TCP.get("bare-bones").unwrap().len(), 20);
        assert_eq!(TCP.get("aware").unwrap().len(), 26);
        assert_eq!(UDP.get("everything").unwrap().len(), 32);
        assert_eq!(UDP.get("Aware"), None);
    }
}
