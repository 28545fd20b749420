#!/bin/sh
# Shows nftracer at work: three packets meet the rules of a router, and we watch.
#
#   client 10.1.0.2 --- 10.1.0.1 router 10.2.0.1 --- 10.2.0.2 server
#
# Needs root, ip, iptables-legacy, busybox and nftracer on the search path. Everything happens in three
# network namespaces that are gone afterwards; the machine's own rules are neither read nor touched.

set -eu
PATH=$PATH:/usr/sbin:/sbin

id=$$
client=demo-client-$id router=demo-router-$id server=demo-server-$id
work=$(mktemp -d)
tracer=

cleanup() {
    trap '' INT TERM
    [ -z "$tracer" ] || kill "$tracer" 2> /dev/null || :
    for namespace in "$client" "$router" "$server"; do
        ip netns pids "$namespace" 2> /dev/null | xargs -r kill 2> /dev/null || :
        ip netns delete "$namespace" 2> /dev/null || :
    done
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

say() { printf '\n# %s\n' "$*"; }
on() { ip netns exec "$@"; }

network() {
    for namespace in "$client" "$router" "$server"; do
        ip netns add "$namespace"
        ip -n "$namespace" link set lo up
    done
    ip link add eth0 netns "$client" type veth peer name outside netns "$router"
    ip link add eth0 netns "$server" type veth peer name inside netns "$router"
    ip -n "$client" address add 10.1.0.2/24 dev eth0
    ip -n "$router" address add 10.1.0.1/24 dev outside
    ip -n "$router" address add 10.2.0.1/24 dev inside
    ip -n "$server" address add 10.2.0.2/24 dev eth0
    ip -n "$client" link set eth0 up
    ip -n "$server" link set eth0 up
    ip -n "$router" link set outside up
    ip -n "$router" link set inside up
    ip -n "$client" route add default via 10.1.0.1
    ip -n "$server" route add default via 10.2.0.1
    on "$router" sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward'
    # Neighbours are known beforehand, so that the first packet already finds its way.
    on "$client" busybox ping -c 1 -W 5 10.1.0.1 > /dev/null
    on "$server" busybox ping -c 1 -W 5 10.2.0.1 > /dev/null
}

# What a firewall with zones makes of "telnet is forbidden, ping is welcome, the web server is inside".
rules() {
    on "$router" iptables-legacy-restore << 'RULES'
*nat
:PREROUTING ACCEPT
:INPUT ACCEPT
:OUTPUT ACCEPT
:POSTROUTING ACCEPT
:PRE_public -
-A PREROUTING -i outside -j PRE_public
-A PRE_public -p tcp -m tcp --dport 80 -m comment --comment "the web server is inside" -j DNAT --to-destination 10.2.0.2:8080
COMMIT
*filter
:INPUT DROP
:FORWARD DROP
:OUTPUT ACCEPT
:IN_public -
:IN_public_deny -
:IN_public_allow -
:FWD_public -
-A INPUT -i lo -j ACCEPT
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -i outside -j IN_public
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -i outside -o inside -j FWD_public
-A IN_public -j IN_public_deny
-A IN_public -j IN_public_allow
-A IN_public_deny -p tcp -m tcp --dport 23 -m comment --comment "no telnet" -j DROP
-A IN_public_allow -p icmp -m comment --comment "ping is welcome" -j ACCEPT
-A FWD_public -d 10.2.0.2/32 -p tcp -m tcp --dport 8080 -j ACCEPT
COMMIT
RULES
}

# The ruleset without its counters, which packets change.
saved() { on "$router" iptables-legacy-save | sed -e '/^#/d' -e 's/\[[0-9]*:[0-9]*\]//'; }

# One attempt to connect, given up at once: exactly one SYN.
connect() {
    on "$client" busybox nc -w 5 10.1.0.1 "$1" < /dev/null > /dev/null 2>&1 &
    attempt=$!
    sleep 0.3
    kill "$attempt" 2> /dev/null || :
    wait "$attempt" 2> /dev/null || :
}

three_packets() {
    connect 23
    on "$client" busybox ping -c 1 -W 5 10.1.0.1 > /dev/null
    connect 80
}

# What the client sends, not the answers.
FILTER='src host 10.1.0.2 and (tcp or icmp)'

# Traces the three packets; the arguments choose the output.
traced() {
    nftracer trace --netns "$router" -c 3 --for 30s "$@" "$FILTER" 2> "$work/said" &
    tracer=$!
    until grep -q '^tracing ' "$work/said"; do
        if ! kill -0 "$tracer" 2> /dev/null; then
            cat "$work/said" >&2
            exit 1
        fi
        sleep 0.05
    done
    grep '^tracing ' "$work/said"
    three_packets
    wait "$tracer"
    tracer=
    grep -v '^tracing ' "$work/said" || :
}

network
rules
on "$server" busybox nc -lk -p 8080 -e true 2> /dev/null &
saved > "$work/before"

say 'A router between a client and a server has these rules:'
on "$router" nftracer rules

say 'The client sends three packets: to the telnet port, a ping, and to the web server.'
say 'nftracer shows which rules each of them meets, and what became of it:'
traced -o pretty

say 'The same as the lines of the TRACE target, for scripts that read such lines:'
traced -o trace

say 'The rules before and after, without counters:'
saved > "$work/after"
if cmp -s "$work/before" "$work/after"; then
    echo "identical, $(wc -l < "$work/before") lines"
else
    diff "$work/before" "$work/after" || :
    exit 1
fi
