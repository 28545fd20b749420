#!/bin/sh
# The rules of the captured tables. Runs inside a network namespace that has none:
#     unshare -n sh rules.sh
set -eu

iptables-legacy-restore <<'END'
*raw
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A PREROUTING -i lo -j ACCEPT
-A PREROUTING -p udp -m udp --dport 53 -j CT --notrack
-A PREROUTING -p tcp -j TRACE
-A OUTPUT -j ACCEPT
COMMIT
*mangle
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A PREROUTING -m mark --mark 0x1 -j MARK --set-xmark 0x2/0xffffffff
-A PREROUTING -j MARK --set-xmark 0x10/0xff
-A FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
-A OUTPUT -j CONNMARK --restore-mark
-A POSTROUTING -p udp -j DSCP --set-dscp 0x2e
-A POSTROUTING -p icmp -j TEE --gateway 192.0.2.1
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:FORWARD - [0:0]
:KUBE-SERVICES - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -j FORWARD
-A POSTROUTING -s 10.0.0.0/8 ! -o lo -j MASQUERADE
-A POSTROUTING -s 192.168.1.0/24 -o eth0 -j SNAT --to-source 203.0.113.7
-A FORWARD -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 8080
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m tcp --dport 443 -j DNAT --to-destination 10.0.0.1:6443
COMMIT
*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:EMPTY - [0:0]
:FOO - [0:0]
:INNER - [0:0]
:PREROUTING - [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p icmp -m comment --comment "say \"ping\" \\ 'pong'"
-A INPUT -p tcp -m tcp --dport 22 -m comment --comment "looks like -j DROP" -j FOO
-A INPUT -p udp -g PREROUTING
-A INPUT -m limit --limit 5/min -j LOG --log-prefix "input: "
-A INPUT -m statistic --mode random --probability 0.5 -j RETURN
-A INPUT -p tcp -j REJECT --reject-with tcp-reset
-A INPUT -j EMPTY
-A FORWARD -j RETURN
-A OUTPUT -j ACCEPT
-A FOO -s 192.0.2.0/24 -j INNER
-A FOO -m mark --mark 0x7 -j RETURN
-A FOO -g INNER
-A FOO -j DROP
-A INNER -p tcp -m multiport --dports 80,443,8000:8080 -j ACCEPT
-A INNER
-A INNER -j RETURN
-A PREROUTING -p udp -m udp --dport 53 -j NFQUEUE --queue-num 3
-A PREROUTING -j DROP
COMMIT
*security
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
COMMIT
END

# A comment that runs over two lines, the second of which looks like a rule.
iptables-legacy -A INNER -m comment --comment 'two
-A INNER -j ACCEPT' -j ACCEPT

ip6tables-legacy-restore <<'END'
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:FOO - [0:0]
-A INPUT -s fe80::/10 -p ipv6-icmp -m icmp6 --icmpv6-type 135 -j ACCEPT
-A INPUT -p tcp -m tcp --dport 22 -g FOO
-A INPUT -j FOO
-A INPUT -m hl --hl-lt 2 -j DROP
-A OUTPUT -j ACCEPT
-A FOO -m rt --rt-type 0 -j REJECT --reject-with icmp6-adm-prohibited
-A FOO -j DROP
COMMIT
*mangle
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A PREROUTING -j MARK --set-xmark 0x6/0xffffffff
-A POSTROUTING -j HL --hl-set 64
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A POSTROUTING -o eth0 -j MASQUERADE
COMMIT
END
