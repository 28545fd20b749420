# What the captures here were made of. Read by a shell in a network namespace of its own.
ip link set lo up
ip link add left type veth peer name right
ip link add br0 type bridge

iptables-nft -P FORWARD DROP
iptables-nft -N web
iptables-nft -A INPUT -p tcp --dport 80 -m comment --comment 'say "hi"' -j web
iptables-nft -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
iptables-nft -A INPUT -m limit --limit 5/s -j LOG --log-prefix 'x y'
iptables-nft -A web -s 10.0.0.0/8 -j RETURN
iptables-nft -A web -m set --match-set none src -j DROP 2>/dev/null || iptables-nft -A web -p udp -j REJECT
iptables-nft -A web -g web 2>/dev/null || iptables-nft -A web -j DROP
nft add rule ip filter web meta l4proto tcp drop
iptables-nft -t nat -A POSTROUTING -o left -j MASQUERADE
ip6tables-nft -A OUTPUT -p icmpv6 --icmpv6-type echo-request -j ACCEPT
ebtables-nft -N odd
ebtables-nft -P odd DROP
ebtables-nft -A odd -p IPv4 --ip-proto tcp --ip-dport 22 -j ACCEPT
ebtables-nft -A FORWARD -j odd
arptables-nft -A INPUT -i lo -j DROP

nft -f - <<'RULES'
table inet filter {
    comment "native"
    set hosts {
        type ipv4_addr
        flags interval
        elements = { 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, 198.51.100.7, 203.0.113.9 }
    }
    map ports {
        type inet_service : verdict
        elements = { 5001 : jump web, 5002 : drop }
    }
    chain web {
        comment "a chain's comment # handle 9"
        ct state new accept
    }
    chain marked {
        udp dport 5000 counter
        tcp dport 5001 return
        ip6 nexthdr udp return
    }
    chain gone {
        limit rate 100/second comment "with # handle 9"
    }
    chain out {
        type filter hook output priority -10
        meta nftrace set 1
        meta mark set 0x7 jump marked
        udp dport 5000 goto gone
        tcp dport vmap @ports
    }
    chain in {
        type filter hook input priority 10; policy drop
        meta nftrace set 1
        icmp type destination-unreachable accept
        icmpv6 type destination-unreachable accept
        tcp dport 5001 reject with tcp reset
        tcp dport 1 jump {
            ip saddr @hosts accept
            log prefix "two
lines"
        }
        tcp flags rst drop
        udp dport 5000 ip daddr { 127.0.0.1, 127.0.0.2 } accept
    }
}
table netdev edge {
    chain first {
        type filter hook ingress device lo priority 0
        meta nftrace set 1
        udp dport 5003 drop
    }
    chain both {
        type filter hook ingress devices = { left, right } priority 5
    }
}
table bridge filter2 {
    chain through {
        type filter hook forward priority 0
        ether type arp accept
    }
}
table ip asleep {
    flags dormant
    chain never {
        type nat hook prerouting priority dstnat
        tcp dport 81 redirect to :8081
    }
}
RULES
