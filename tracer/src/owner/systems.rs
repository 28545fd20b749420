//! The programs that are known by the rules they make.

/// How a name or a comment is worded.
pub(super) struct Wording {
    /// The text; a star stands for anything but nothing and blanks.
    pub(super) pattern: &'static str,
    /// What it is about, `$1` for the first star; empty where it does not tell.
    pub(super) object: &'static str,
}

/// A program that makes rules.
pub(super) struct System {
    /// Its name.
    pub(super) name: &'static str,
    /// Tables (of nftables) that are all its own.
    pub(super) tables: &'static [Wording],
    /// Chains that it makes.
    pub(super) chains: &'static [Wording],
    /// Chains that it makes for others to fill.
    pub(super) users: &'static [&'static str],
    /// Comments that nobody else writes.
    pub(super) signatures: &'static [Wording],
    /// Comments that tell the object of a rule that is known to be its own.
    pub(super) comments: &'static [Wording],
}

const fn says(pattern: &'static str, object: &'static str) -> Wording {
    Wording { pattern, object }
}

const fn is(pattern: &'static str) -> Wording {
    says(pattern, "")
}

const UNKNOWN: System =
    System { name: "", tables: &[], chains: &[], users: &[], signatures: &[], comments: &[] };

pub(super) const SYSTEMS: &[System] = &[
    // pkg/proxy/iptables/proxier.go, pkg/proxy/nftables/proxier.go
    System {
        name: "kube-proxy",
        tables: &[is("kube-proxy")],
        chains: &[
            says("service-*-*/*/*/*", "service $2/$3:$5"),
            says("service-*-*/*/*/", "service $2/$3"),
            says("external-*-*/*/*/*", "service $2/$3:$5"),
            says("external-*-*/*/*/", "service $2/$3"),
            says("endpoint-*-*/*/*/*__*/*", "service $2/$3:$5, endpoint $6:$7"),
            says("endpoint-*-*/*/*/__*/*", "service $2/$3, endpoint $5:$6"),
            is("KUBE-{SVC|SVL|XLB|SEP|EXT|FW}-*"),
            is("KUBE-{SERVICES|EXTERNAL-SERVICES|NODEPORTS|NODE-PORT|POSTROUTING|FORWARD|LOAD-BALANCER}"),
            is("KUBE-{PROXY-FIREWALL|PROXY-CANARY|MARK-MASQ|MARK-DROP}"),
        ],
        comments: &[
            says("* -> *", "service $1, endpoint $2"),
            says("* cluster IP", "service $1"),
            says("* external IP", "service $1"),
            says("* loadbalancer IP", "service $1"),
            says("* has no endpoints", "service $1"),
            says("* has no local endpoints", "service $1"),
            says("masquerade traffic for * external destinations", "service $1"),
            says("pod traffic for * external destinations", "service $1"),
            says("route LOCAL traffic for * external destinations", "service $1"),
            says("masquerade LOCAL traffic for * external destinations", "service $1"),
            says("other traffic to * will be dropped by KUBE-PROXY-FIREWALL", "service $1"),
            says("*/*", "service $1/$2"),
        ],
        ..UNKNOWN
    },
    // pkg/kubelet/kubelet_network_linux.go
    System { name: "kubelet", chains: &[is("KUBE-{FIREWALL|KUBELET-CANARY|IPTABLES-HINT}")], ..UNKNOWN },
    // felix/rules/rule_defs.go; comments end in the hash that Felix knows its rules by
    System {
        name: "Calico",
        tables: &[is("calico")],
        chains: &[
            says("{|filter-}cali-tw-*", "to endpoint $1"),
            says("{|filter-}cali-fw-*", "from endpoint $1"),
            says("{|filter-}cali-th-*", "to host endpoint $1"),
            says("{|filter-}cali-fh-*", "from host endpoint $1"),
            is("cali-*"),
        ],
        signatures: &[is("cali:*")],
        ..UNKNOWN
    },
    // pkg/datapath/iptables/iptables.go
    System {
        name: "Cilium",
        chains: &[is("{|OLD_}CILIUM_*")],
        signatures: &[is("cilium-feeder: *")],
        ..UNKNOWN
    },
    // libnetwork/drivers/bridge
    System {
        name: "Docker",
        tables: &[is("docker-bridges")],
        chains: &[
            is("DOCKER"),
            is("DOCKER-{FORWARD|BRIDGE|CT|INTERNAL|INGRESS|ISOLATION-STAGE-1|ISOLATION-STAGE-2|USER}"),
            is("DOCKER_{OUTPUT|POSTROUTING}"),
        ],
        users: &["DOCKER-USER"],
        ..UNKNOWN
    },
    // netavark/src/firewall
    System {
        name: "netavark",
        tables: &[is("netavark")],
        chains: &[
            says("NETAVARK-DN-*", "network $1"),
            is("NETAVARK-{HOSTPORT|ISOLATION}-*"),
            is("NETAVARK_{FORWARD|INPUT}"),
            is("NETAVARK_ISOLATION_*"),
            says("NETAVARK-*", "network $1"),
        ],
        ..UNKNOWN
    },
    // plugins/meta/portmap, pkg/ip/ipmasq_iptables_linux.go, pkg/utils/utils.go
    System {
        name: "CNI",
        chains: &[is("CNI-*")],
        users: &["CNI-ADMIN"],
        comments: &[
            says("dnat name: \"*\" id: \"*\"", "network $1, container $2"),
            says("name: \"*\" id: \"*\"", "network $1, container $2"),
        ],
        ..UNKNOWN
    },
    // pkg/trafficmngr
    System {
        name: "flannel",
        tables: &[is("flannel-ipv4"), is("flannel-ipv6")],
        chains: &[is("FLANNEL-POSTRTG"), is("FLANNEL-FWD")],
        signatures: &[is("flanneld masq"), is("flanneld forward")],
        ..UNKNOWN
    },
    // src/firewall/core/nftables.py, ipXtables.py: a policy's chains are named like a zone's
    System {
        name: "firewalld",
        tables: &[is("firewalld")],
        chains: &[
            is("{INPUT|FORWARD|FORWARD_IN|FORWARD_OUT|PREROUTING|POSTROUTING}_ZONES"),
            is("{INPUT|FORWARD|FORWARD_IN|FORWARD_OUT|PREROUTING|POSTROUTING}_ZONES_SOURCE"),
            is("{INPUT|FORWARD|OUTPUT|PREROUTING|POSTROUTING}_direct"),
            says(
                "{filter|mangle|nat|raw}_{IN|FWD|FWDI|FWDO|PRE|POST}_policy_*_{log|deny|allow|pre|post}",
                "policy $1",
            ),
            says("{filter|mangle|nat|raw}_{IN|FWD|FWDI|FWDO|PRE|POST}_policy_*", "policy $1"),
            says(
                "{filter|mangle|nat|raw}_{IN|FWD|FWDI|FWDO|PRE|POST}_*_{log|deny|allow|pre|post}",
                "zone $1",
            ),
            says("{filter|mangle|nat|raw}_{IN|FWD|FWDI|FWDO|PRE|POST}_*", "zone $1"),
            says("{IN|FWD|FWDI|FWDO|PRE|POST}_policy_*_{log|deny|allow|pre|post}", "policy $1"),
            says("{IN|FWD|FWDI|FWDO|PRE|POST}_*_{log|deny|allow|pre|post}", "zone $1"),
        ],
        ..UNKNOWN
    },
    // src/backend_iptables.py; user rules are ufw's own, made from what its user told it
    System { name: "ufw", chains: &[is("ufw-*"), is("ufw6-*")], ..UNKNOWN },
    // src/network/network_iptables.c, network_nftables.c
    System {
        name: "libvirt",
        tables: &[is("libvirt_network")],
        chains: &[is("LIBVIRT_{INP|OUT|FWI|FWO|FWX|PRT}")],
        ..UNKNOWN
    },
    // config/action.d/iptables.conf, nftables.conf
    System {
        name: "fail2ban",
        tables: &[is("f2b-table")],
        chains: &[is("f2b-chain"), says("{f2b|fail2ban}-*", "jail $1")],
        ..UNKNOWN
    },
    // util/linuxfw
    System { name: "Tailscale", chains: &[is("ts-{input|forward|postrouting}")], ..UNKNOWN },
    // src/wg-quick/linux.bash
    System {
        name: "wg-quick",
        tables: &[says("wg-quick-*", "interface $1")],
        signatures: &[says("wg-quick(8) rule for *", "interface $1")],
        ..UNKNOWN
    },
];
